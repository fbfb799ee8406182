"""When the gateway looks for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from gateway import garbage
from gateway.garbage import WORTH, due

MIB = 2**20


def test_it_is_due_when_memory_has_grown_by_half_and_by_enough() -> None:
    assert not due(100 * MIB + WORTH, 100 * MIB)
    assert due(101 * MIB + WORTH, 100 * MIB)
    assert not due(1500 * MIB, 1000 * MIB)
    assert due(1501 * MIB, 1000 * MIB)
    assert not due(100 * MIB, 1000 * MIB)


@pytest.mark.parametrize(
    ("sizes", "collected_at"),
    [
        pytest.param([1000, 1200, 100, 200, 201], [201], id="it counts from the least there was"),
        pytest.param([100, 200, 400, 800, 801], [801], id="it waits until no more come"),
        pytest.param([100, *range(200, 1200, 25)], [950], id="but not for ever"),
    ],
)
async def test_when_it_collects(
    sizes: list[int], collected_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory in MiB, look by look."""
    collected, rest, before = list[int](), asyncio.Event(), gc.get_threshold()
    latest = 0

    def looks() -> Iterator[int]:
        nonlocal latest
        for latest in sizes:
            yield latest * MIB
        rest.set()
        while True:
            yield latest * MIB

    told = looks()
    monkeypatch.setattr(garbage, "_LOOK", 0.0)
    monkeypatch.setattr(gc, "collect", lambda: collected.append(latest))
    collecting = asyncio.create_task(garbage.collect(lambda: next(told)))
    await asyncio.wait_for(rest.wait(), 5)
    assert gc.get_threshold() != before
    collecting.cancel()
    await asyncio.wait((collecting,))
    assert collected == collected_at
    assert gc.get_threshold() == before
