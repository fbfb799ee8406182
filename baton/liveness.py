"""Heartbeats: the only lease in Baton is that the peer of a stream is alive.

A partition, a SIGSTOP or a power cut sends no FIN, so every long-lived stream carries a beat in
both directions; ``missed`` silent beats end it, and with it everything it holds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Sleep = Callable[[float], Awaitable[None]]


class PeerSilent(Exception):
    """The peer of a stream has missed too many beats."""


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a sign of life is sent, and how many may be missed."""

    interval: float  #: seconds
    missed: int

    @property
    def patience(self) -> float:
        """Seconds of silence after which the peer is taken for dead."""
        return self.interval * self.missed


def weight(waited: float, interval: float) -> float:
    """What a silent interval counts that took ``waited`` seconds instead of ``interval``.

    Our own ticks are counted, not elapsed time: a process that was stopped itself wakes to one
    tick, not to thirty, and so does not take its waiting peers for dead. A tick that is late by
    an interval or more counts half: this event loop was busy, and what the peer has said may lie
    unread. Not less: one that is always late must let go of the dead, too.
    """
    return 1.0 if waited < 2 * interval else 0.5


class Liveness:
    """Watches one stream's peer. Silence is counted in our own ticks: see ``weight``."""

    def __init__(
        self,
        beat: Beat,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beat = beat
        self._sleep = sleep
        self._clock = clock
        self._silent = 0.0
        self._sent = 0
        self._sent_at = deque[float](maxlen=beat.missed)

    @property
    def silent(self) -> float:
        """Intervals in which nothing was heard, so far, by ``weight``."""
        return self._silent

    @property
    def steady(self) -> bool:
        """Whether we gave our own signs of life as we should: a peer that heard none is deaf, or
        the way to it is cut. Otherwise this process was stopped, or is new."""
        if len(self._sent_at) < self._beat.missed:
            return False
        return self._clock() - self._sent_at[0] < self._beat.patience + self._beat.interval / 2

    def heard(self) -> None:
        """Any message from the peer is a sign of life."""
        self._silent = 0.0

    async def run(self, send: Callable[[int], None]) -> None:
        """Call ``send(sequence)`` every interval, without waiting, until the peer is silent.

        Raises PeerSilent after ``missed`` intervals in which nothing was heard.
        """
        while True:
            self._sent += 1
            began = self._clock()
            self._sent_at.append(began)
            send(self._sent)
            await self._sleep(self._beat.interval)
            self._silent += weight(self._clock() - began, self._beat.interval)
            if self._silent >= self._beat.missed:
                raise PeerSilent(f"nothing heard for {self._beat.patience:g} s")
