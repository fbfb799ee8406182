"""Heartbeats: the only lease in Baton is that the peer of a stream is alive.

A partition, a SIGSTOP or a power cut sends no FIN, so every long-lived stream carries a beat in
both directions; ``missed`` silent beats end it, and with it everything it holds.
"""

from __future__ import annotations

import asyncio
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


class Liveness:
    """Watches one stream's peer.

    Silence is counted in our own ticks, not in elapsed time: a process that was stopped itself
    wakes to one tick, not to thirty, and so does not take its waiting peers for dead.
    """

    def __init__(self, beat: Beat, *, sleep: Sleep = asyncio.sleep) -> None:
        self._beat = beat
        self._sleep = sleep
        self._silent = 0
        self._sent = 0

    @property
    def silent(self) -> int:
        """Intervals in which nothing was heard, so far."""
        return self._silent

    def heard(self) -> None:
        """Any message from the peer is a sign of life."""
        self._silent = 0

    async def run(self, send: Callable[[int], None]) -> None:
        """Call ``send(sequence)`` every interval, without waiting, until the peer is silent.

        Raises PeerSilent after ``missed`` intervals in which nothing was heard.
        """
        while True:
            self._sent += 1
            send(self._sent)
            await self._sleep(self._beat.interval)
            self._silent += 1
            if self._silent >= self._beat.missed:
                raise PeerSilent(f"nothing heard for {self._beat.patience:g} s")
