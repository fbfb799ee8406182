"""Where the two sides of a hand-off run: on a core each, so that neither takes the other's time."""

from __future__ import annotations

import os

#: Wherever the kernel likes.
ANY = -1


def two() -> tuple[int, int]:
    """A core for each side; ANY for both where this process has only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (ANY, ANY)


def pin(pid: int, core: int) -> None:
    """Bind a process, 0 for this one, to a core. Only threads started later come along."""
    if core != ANY:
        os.sched_setaffinity(pid, {core})
