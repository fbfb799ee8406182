"""What bench.telemetry asks for, and what it makes of it."""

from __future__ import annotations

import pytest

from bench.telemetry import WAYS, interval


@pytest.mark.parametrize(("way", "sampled"), [("not sampled", 0), ("tenth", 7), ("trace", 64)])
def test_so_many_requests_are_traced(way: str, sampled: int) -> None:
    told = [WAYS[way].headers(number) for number in range(64)]
    assert sum("traceparent" not in headers for headers in told) == sampled


def test_starts_that_differ_widen_the_interval() -> None:
    """However many rounds each has."""
    low, high = interval([[0.01] * 50, [0.03] * 50, [0.05] * 50])
    assert low < 0.02 < 0.04 < high
