"""How decode steps are cut for a device: batch sizes, and shares of keys. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: (from this size on, sizes lie so far apart). A step reads all weights however many rows it has,
#: so rows that only fill up cost little; a graph costs a tenth of a second at start.
_STEPS = ((1, 1), (2, 2), (4, 4), (8, 8), (64, 32), (256, 64))

_MOST_SPLITS = 32
_WAVES = 2  # programs for each multiprocessor, at least


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


def splits_for(programs: int, processors: int) -> int:
    """In how many parts, a power of two, to cut each program's keys to keep a device busy."""
    splits = 1
    while splits < _MOST_SPLITS and programs * splits < processors * _WAVES:
        splits *= 2
    return splits
