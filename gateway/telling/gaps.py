"""Times between deliveries of tokens: the first of them each, all of them counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

#: Kept one by one; what comes later is counted only, so that a long answer costs no more.
KEPT = 256
#: Later ones are counted in buckets whose borders lie so far apart: what is said of them is within
#: half of it.
_WIDTH = 1.05
_SHORTEST = 1e-6  # seconds


class Gaps:
    """Of one choice, or several."""

    def __init__(self) -> None:
        self.kept: list[float] = []  #: seconds, in order
        self.longest = 0.0
        self._later: Counter[int] = Counter()
        self._count = 0

    @classmethod
    def together(cls, parts: Iterable[Gaps]) -> Gaps:
        """Those of several choices."""
        whole = cls()
        for part in parts:
            whole.kept += part.kept
            whole.longest = max(whole.longest, part.longest)
            whole._later += part._later
            whole._count += part._count
        return whole

    def __len__(self) -> int:
        return self._count

    def add(self, seconds: Sequence[float]) -> None:
        """The next ones."""
        if not seconds:
            return
        self._count += len(seconds)
        self.longest = max(self.longest, *seconds)
        room = KEPT - len(self.kept)
        self.kept += seconds[:room]
        self._later.update(
            [math.floor(math.log(max(s, _SHORTEST), _WIDTH)) for s in seconds[room:]]
        )

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


class Arrivals:
    """When tokens of one choice came. To note one takes a tenth of a microsecond: what is made of
    them is made of many at a time."""

    __slots__ = ("_gaps", "_times")

    def __init__(self) -> None:
        self._gaps = Gaps()
        self._times: list[float] = []  # the last that was looked at, and those since then

    def note(self, at: float) -> None:
        """Some came at ``at``, in seconds."""
        self._times.append(at)
        if len(self._times) > KEPT:
            self._look()

    @property
    def gaps(self) -> Gaps:
        """Between those noted so far."""
        self._look()
        return self._gaps

    @property
    def last(self) -> float | None:
        """When the latest came."""
        return self._times[-1] if self._times else None

    def _look(self) -> None:
        self._gaps.add([after - before for before, after in pairwise(self._times)])
        del self._times[:-1]


def milliseconds(seconds: float) -> float:
    """To the microsecond, as everything that is shown to people and their tools."""
    return round(seconds * 1e3, 3)
