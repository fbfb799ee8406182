"""Virtual time: what is due when.

Time is counted in whole picoseconds, so that steps added one by one and steps added at once by a
formula come to the same number, to the last bit.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

#: Per second.
PS = 10**12


def ps(seconds: float) -> int:
    """Picoseconds, rounded."""
    return round(seconds * PS)


class Clock:
    """The events to come. Those of one moment happen in the order in which they were announced."""

    def __init__(self) -> None:
        self.now = 0  #: picoseconds
        self.happened = 0  #: events so far
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        """Seconds, as the code under simulation asks for them."""
        return self.now / PS

    def at(self, when: int, do: Callable[[], None]) -> None:
        """Raises ValueError for a moment that has passed."""
        if when < self.now:
            raise ValueError(f"{when} ps has passed: it is {self.now} ps")
        heapq.heappush(self._due, (when, next(self._order), do))

    def after(self, delay: int, do: Callable[[], None]) -> None:
        """In so many picoseconds."""
        self.at(self.now + delay, do)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._due:
            self.now, _, do = heapq.heappop(self._due)
            self.happened += 1
            do()
