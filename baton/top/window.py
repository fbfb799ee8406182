"""Percentiles of what was seen lately, in memory that does not grow with how much that is."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

#: Values are told apart by steps of 4 %, so a percentile is off by 2 % at most.
_STEP = math.log(1.04)
#: Smaller and larger ones count as these.
_LEAST, _MOST = 1e-3, 1e8


@dataclass(slots=True)
class _Second:
    number: int
    counts: Counter[int] = field(default_factory=Counter)


class Window:
    """The values of the last ``seconds``, a histogram of logarithmic steps for each second."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._seen: deque[_Second] = deque(maxlen=seconds)

    def add(self, value: float, now: float, weight: int = 1) -> None:
        """``now``: seconds of a clock that never goes back."""
        if not self._seen or self._seen[-1].number != int(now):
            self._seen.append(_Second(int(now)))
        step = math.floor(math.log(min(max(value, _LEAST), _MOST)) / _STEP)
        self._seen[-1].counts[step] += weight

    def percentiles(self, *shares: float, now: float) -> tuple[float | None, ...]:
        """The values below which these shares (0 to 1) lie; None where nothing was seen."""
        since = int(now) - self._seconds
        together = Counter[int]()
        for second in self._seen:
            if second.number > since:
                together.update(second.counts)
        return tuple(_percentile(together, share) for share in shares)


def _percentile(counts: Counter[int], share: float) -> float | None:
    left = share * counts.total()
    for step in sorted(counts):
        left -= counts[step]
        if left <= 0:
            return math.exp((step + 0.5) * _STEP)
    return None
