"""How the cores of this machine are shared among workers."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part."""

    threads: int
    pinned: frozenset[int] | None  #: None: the kernel places it


def available() -> list[int]:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shares(cores: list[int], workers: int, threads: int | None) -> list[Share]:
    """Equal shares: the thread count is part of what makes two workers' results bitwise equal.

    Workers with several threads are pinned, each to cores of its own, which keeps one's threads
    from waiting for another's. With one thread each, pinning would only forbid the worker's RPC
    loop to run beside its engine; the gateway is never pinned.
    """
    each = threads or max(1, len(cores) // workers)
    if each == 1 or each * workers > len(cores) or not hasattr(os, "sched_setaffinity"):
        return [Share(each, None)] * workers
    return [Share(each, frozenset(cores[i * each : (i + 1) * each])) for i in range(workers)]
