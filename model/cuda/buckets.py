"""Which batch sizes decode steps are captured for. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: (from this size on, sizes lie so far apart). A step reads all weights however many rows it has,
#: so rows that only fill up cost little; a graph costs a tenth of a second at start.
_STEPS = ((1, 1), (2, 2), (4, 4), (8, 8), (64, 32), (256, 64))


def bucket_sizes(most: int) -> tuple[int, ...]:
    """The sizes to capture for batches of 1 to ``most`` sequences, ascending, ``most`` included."""
    if most < 1:
        raise ValueError(f"{most} sequences are not a batch")
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += next(apart for first, apart in reversed(_STEPS) if size >= first)
    return (*sizes, most)


def bucket_of(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending ``sizes`` that holds ``count`` rows; None if none does."""
    index = bisect_left(sizes, count)
    return sizes[index] if index < len(sizes) else None
