"""When a process looks for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from baton import garbage
from baton.garbage import WORTH, due

MIB = 2**20


def test_it_is_due_when_memory_has_grown_by_half_and_by_enough() -> None:
    assert not due(100 * MIB + WORTH, 100 * MIB)
    assert due(101 * MIB + WORTH, 100 * MIB)
    assert not due(1500 * MIB, 1000 * MIB)
    assert due(1501 * MIB, 1000 * MIB)
    assert not due(100 * MIB, 1000 * MIB)


async def test_it_is_counted_from_the_least_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 MiB, then 100, then 200: that is twice as much."""
    collected, rest, before = list[int](), asyncio.Event(), gc.get_threshold()

    def sizes() -> Iterator[int]:
        yield from (1000 * MIB, 1200 * MIB, 100 * MIB, 200 * MIB, 150 * MIB)
        rest.set()
        while True:
            yield 150 * MIB

    told = sizes()
    monkeypatch.setattr(garbage, "_LOOK", 0.0)
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    collecting = asyncio.create_task(garbage.collect(lambda: next(told)))
    await asyncio.wait_for(rest.wait(), 5)
    assert gc.get_threshold() != before
    collecting.cancel()
    await asyncio.wait((collecting,))
    assert len(collected) == 1
    assert gc.get_threshold() == before
