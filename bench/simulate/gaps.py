"""How long clients waited for a token after the one before: millions of gaps in a histogram."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from bench.simulate.clock import PS

#: Each bucket is so much wider than the one before: percentiles are this exact.
_GROWTH = 1.005
#: Up to 1,000 seconds; the first bucket is of what is shorter than 10 us.
_EDGES = list(accumulate(range(3700), lambda edge, _: int(edge * _GROWTH) + 1, initial=10**7))


class Gaps:
    """Counts by length. Adding a run of steps of growing length costs as many operations as
    buckets are touched, and counts what adding each would."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_EDGES) + 1)
        self.count = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gaps) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]

    def add(self, first: int, weight: int, growth: int = 0, steps: int = 1) -> None:
        """``steps`` gaps of ``first``, ``first + growth``, ... picoseconds, each so often."""
        self.count += weight * steps
        done = 0
        while done < steps:
            gap = first + done * growth
            bucket = bisect_right(_EDGES, gap)
            here = steps - done
            if growth and bucket < len(_EDGES):
                here = min(here, -(-(_EDGES[bucket] - gap) // growth))
            self._counts[bucket] += weight * here
            done += here

    def percentile(self, percent: float) -> float:
        """Seconds; 0 where nothing was counted. The upper edge of the bucket it is in."""
        wanted, seen = percent / 100 * self.count, 0
        for edge, count in zip(_EDGES, self._counts, strict=False):
            seen += count
            if count and seen >= wanted:
                return edge / PS
        return 0.0
