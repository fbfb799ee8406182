"""The soak's slope: of each process by itself, once it is warm."""

from __future__ import annotations

import pytest

from bench.records import Record
from bench.soak import slopes


def test_a_slope_is_of_what_came_after_warming_up() -> None:
    found = [
        Record(name, mib, unit, {"minute": minute})
        for minute in range(1, 31)
        for name, mib, unit in (
            ("gateway", 80.0 if minute > 5 else 10.0 * minute, "MiB"),
            ("d0", 90.0 + minute / 2, "MiB"),
            ("answered", 300.0 + minute, ""),
        )
    ]
    grown = slopes(found, warm=5)
    assert grown == pytest.approx({"gateway": 0.0, "d0": 30.0})
