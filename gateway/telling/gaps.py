"""Times between deliveries of tokens: the first of them each, all of them counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

#: Kept one by one; what comes later is counted only, so that a long answer costs no more.
KEPT = 256
#: Later ones are counted in buckets whose borders lie so far apart: what is said of them is within
#: half of it.
_WIDTH = 1.05
_SHORTEST = 1e-6  # seconds


class Gaps:
    """Of one choice, or several. Adding one takes well under a microsecond."""

    def __init__(self) -> None:
        self.kept: list[float] = []  #: seconds, in order
        self.longest = 0.0
        self._later: Counter[int] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, seconds: float) -> None:
        self._count += 1
        if seconds > self.longest:
            self.longest = seconds
        if len(self.kept) < KEPT:
            self.kept.append(seconds)
        else:
            self._later[math.floor(math.log(max(seconds, _SHORTEST), _WIDTH))] += 1

    def percentile(self, share: float) -> float:
        """Seconds that ``share`` of the gaps (0 to 1) do not exceed, the nearest rank; exact up to
        ``KEPT`` gaps, to 2.5 % with more. There must be one."""
        left = max(1, math.ceil(share * self._count))
        if not self._later:
            return sorted(self.kept)[left - 1]
        counts = Counter(self.kept)
        for bucket, count in self._later.items():
            counts[_WIDTH ** (bucket + 0.5)] += count
        for seconds in sorted(counts):
            left -= counts[seconds]
            if left <= 0:
                return min(seconds, self.longest)
        return self.longest

    def summary(self) -> Mapping[str, float | int]:
        """In milliseconds; empty without any."""
        if not self._count:
            return {}
        return {
            "count": self._count,
            "p50_ms": milliseconds(self.percentile(0.5)),
            "p99_ms": milliseconds(self.percentile(0.99)),
            "max_ms": milliseconds(self.longest),
        }


def milliseconds(seconds: float) -> float:
    """To the microsecond, as everything that is shown to people and their tools."""
    return round(seconds * 1e3, 3)
