"""Members that a source has lost, kept for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from baton.membership import Entry


class Remembered:
    """What was read last, and for so many seconds who is missing there. Not thread-safe."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[str, Entry] = {}
        self._missing: dict[str, float] = {}  #: since when, by address

    def take(self, read: frozenset[Entry]) -> frozenset[Entry]:
        """The members after another reading."""
        now, there = self._clock(), {entry.address: entry for entry in read}
        gone = self._known.keys() - there.keys()
        self._missing = {address: self._missing.get(address, now) for address in gone}
        kept = {a for a, since in self._missing.items() if now - since < self._seconds}
        self._known = {address: self._known[address] for address in kept} | there
        return frozenset(self._known.values())
