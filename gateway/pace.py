"""How many replays are under way at once: bounded for each worker they go to.

When a session with hundreds of streams breaks, all want to go on at once, and to the same worker.
They get there a few at a time, those first in line first, so that neither their own prompts nor
other streams' steps wait behind all of them.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.waiting import Turn

#: Replays on their way to a first token at one decode worker.
AT_ONCE = 16


@dataclass(order=True, slots=True)
class _Waiter:
    turn: Turn
    let_in: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class _Gate:
    """Lets in so many, the smallest turn first."""

    def __init__(self) -> None:
        self.limit = 0
        self._inside = 0
        self._waiting: list[_Waiter] = []

    @property
    def unused(self) -> bool:
        return not (self._inside or self._waiting)

    async def enter(self, turn: Turn) -> None:
        waiter = _Waiter(turn)
        insort(self._waiting, waiter)
        self._look()
        try:
            await waiter.let_in.wait()
        except asyncio.CancelledError:
            if waiter.let_in.is_set():
                self.leave()
            else:
                self._waiting.remove(waiter)
            raise

    def leave(self) -> None:
        self._inside -= 1
        self._look()

    def _look(self) -> None:
        while self._waiting and self._inside < self.limit:
            self._inside += 1
            self._waiting.pop(0).let_in.set()


class Pace:
    """Counts replays by where they go: to one worker, or to any (the empty name)."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def replay(self, to: str, turn: Turn, workers: int) -> AsyncIterator[None]:
        """Wait for a slot, and have it for the body. ``workers``: how many those are that it may
        go to, now."""
        gate = self._gates.setdefault(to, _Gate())
        gate.limit = AT_ONCE * max(1, workers)
        try:
            await gate.enter(turn)
            try:
                yield
            finally:
                gate.leave()
        finally:
            if gate.unused:
                self._gates.pop(to, None)
