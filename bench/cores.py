"""Where what is measured runs: the two sides of a hand-off on a core each, threads likewise."""

from __future__ import annotations

import os

#: Wherever the kernel likes.
ANY = -1


def two() -> tuple[int, int]:
    """A core for each side; ANY for both where this process has only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (ANY, ANY)


def first(count: int) -> list[int]:
    """So many cores. Raises ValueError where this process has fewer."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise ValueError(f"{count} threads need a core each, but this process has {len(cores)}")
    return cores[:count]


def pin(pid: int, core: int) -> None:
    """Bind a process, 0 for this one, to a core. Only threads started later come along."""
    if core != ANY:
        os.sched_setaffinity(pid, {core})
