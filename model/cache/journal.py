"""What entered and left a prefix cache of late, for those who keep an account of it. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple


class Changes(NamedTuple):
    """What became of a cache between two looks at it."""

    position: int  #: changes since the cache was made, up to and with these
    whole: bool  #: ``entered`` is all there is; otherwise what came since the last look
    entered: list[bytes]
    left: list[bytes]


class Journal:
    """The last ``capacity`` changes, numbered from 1. Not thread-safe.

    As many as the pool has blocks are enough: whoever missed more reads the whole cache, which is
    no longer than that.
    """

    def __init__(self, capacity: int) -> None:
        self._changes: deque[tuple[bytes, bool]] = deque(maxlen=capacity)
        self.position = 0  #: number of the last change

    def note(self, key: bytes, entered: bool) -> None:
        self._changes.append((key, entered))
        self.position += 1

    def since(self, position: int | None, keys: Iterable[bytes]) -> Changes:
        """What a reader who has seen ``position`` has missed, each key as it stands now; all
        ``keys`` of the cache where that is forgotten, or None. O(changes missed)."""
        missed = len(self._changes) + 1 if position is None else self.position - position
        if missed > len(self._changes):
            return Changes(self.position, True, list(keys), [])
        stands: dict[bytes, bool] = {}
        for key, entered in islice(reversed(self._changes), missed):
            stands.setdefault(key, entered)  # the latest change comes first
        here = [key for key, entered in stands.items() if entered]
        return Changes(
            self.position, False, here, [k for k, entered in stands.items() if not entered]
        )
