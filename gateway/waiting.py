"""The one place where requests wait: in order of turn, until there is room for the first.

Turns are counted in *tokens let through*, the one clock that runs as fast as the fleet does (as the
workers' own order is, in tokens computed): a request's turn is how many tokens had been let through
when it came, less what its priority is worth. The smaller turn goes first. What passes a request
is therefore bounded: once ``PRIORITY_TOKENS`` for each step of priority that newcomers may be above
it have been let through since it came, nobody who comes goes before it any more.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from baton.ratio import Ratio

T = TypeVar("T")

#: Tokens that are let through until one step of priority is made up for by waiting.
PRIORITY_TOKENS = 2**16

#: Seconds of waiting after which what was measured before counts half.
_HALF_LIFE = 10.0


@dataclass(frozen=True, order=True, slots=True)
class Turn:
    """A request's place in the order, the same over all its attempts."""

    due: int  #: tokens let through when it came, less what its priority is worth
    arrival: int  #: order of arrival, which decides between equals


@dataclass(order=True, slots=True)
class Waiter:
    """One in line."""

    turn: Turn
    tokens: int = field(compare=False)
    wake: Callable[[], None] = field(compare=False)  #: called when it is to look again


class WaitingRoom:
    """Only the first in line looks for a place; the others stay behind it.

    A replayed request keeps its turn, so it goes before newer ones. A request that needs more than
    the others cannot be overtaken for ever.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: list[Waiter] = []
        self._arrivals = itertools.count()
        self._through = 0
        self._pace = Ratio()
        self._unmeasured = 0  # tokens let through since ``_since``
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def rate(self) -> float:
        """Tokens let through per second while somebody waited: what the fleet can take; 0 when
        nobody has waited yet. Falls while nobody is let through."""
        if not self._waiting or not self._pace.units:
            return self._pace.value
        seconds = self._pace.units + self._clock() - self._since
        return (self._pace.amount + self._unmeasured) / seconds

    def arrive(self, priority: int) -> Turn:
        """The turn of a request that comes now; larger priorities go first."""
        return Turn(self._through - priority * PRIORITY_TOKENS, next(self._arrivals))

    def ahead(self, turn: Turn) -> int:
        """Tokens that wait and are let through before ``turn``."""
        return sum(waiter.tokens for waiter in self._waiting if waiter.turn < turn)

    async def take_turn(self, turn: Turn, tokens: int, find: Callable[[], T | None]) -> T:
        """Wait until ``find``, tried only while first in line, finds something.

        It is tried at once and again after each ``changed()``. What it raises passes through.
        """
        woken = asyncio.Event()
        waiter = self.enter(turn, tokens, woken.set)
        try:
            while (found := self.look(waiter, find)) is None:
                await woken.wait()
                woken.clear()
            return found
        finally:
            self.leave(waiter)

    def enter(self, turn: Turn, tokens: int, wake: Callable[[], None]) -> Waiter:
        """Get in line: ``look`` at once and after each call of ``wake``, and ``leave`` in the end.
        For those who are no coroutine; others ``take_turn``."""
        waiter = Waiter(turn, tokens, wake)
        if not self._waiting:
            self._begin()
        insort(self._waiting, waiter)
        return waiter

    def look(self, waiter: Waiter, find: Callable[[], T | None]) -> T | None:
        """What ``find`` finds; it is not tried for who is not first in line."""
        if self._waiting[0] is not waiter or (found := find()) is None:
            return None
        self._let_through(waiter.tokens)
        return found

    def leave(self, waiter: Waiter) -> None:
        """Get out of line, served or not: the next one may look."""
        self._waiting.remove(waiter)
        self.changed()

    def changed(self) -> None:
        """There may be room now: let the first in line look."""
        if self._waiting:
            self._waiting[0].wake()

    def _begin(self) -> None:
        """Somebody waits from now on."""
        self._since = self._clock()
        self._unmeasured = 0

    def _let_through(self, tokens: int) -> None:
        """Time counts from when the room filled, so one who did not have to wait says nothing."""
        self._through += tokens
        self._unmeasured += tokens
        now = self._clock()
        if (seconds := now - self._since) > 0 and len(self._waiting) > 1:
            self._pace.add(self._unmeasured, seconds, 0.5 ** (seconds / _HALF_LIFE))
            self._since, self._unmeasured = now, 0
