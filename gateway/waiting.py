"""The one place where requests wait: in order of arrival, until there is room for the oldest."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(order=True, slots=True)
class _Waiter:
    arrival: int
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class WaitingRoom:
    """Only the oldest request looks for a place; the others stay behind it.

    A replayed request keeps its arrival number, so it goes before newer ones. A request that
    needs more than the others cannot be overtaken for ever.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiter] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def take_turn(self, arrival: int, find: Callable[[], T | None]) -> T:
        """Wait until ``find``, tried only while first in line, finds something.

        It is tried at once and again after each ``changed()``. What it raises passes through.
        """
        waiter = _Waiter(arrival)
        insort(self._waiting, waiter)
        try:
            while True:
                if self._waiting[0] is waiter and (found := find()) is not None:
                    return found
                await waiter.woken.wait()
                waiter.woken.clear()
        finally:
            self._waiting.remove(waiter)
            self.changed()

    def changed(self) -> None:
        """There may be room now: let the oldest look."""
        if self._waiting:
            self._waiting[0].woken.set()
