"""``python -m tests.chaos.launch MODULE ARGUMENTS``: a process whose logs' disk can become full and
whose clock can jump.

On LOGS_FULL every write to stdout and stderr fails for want of space, until LOGS_FREE. On AHEAD
what Python takes for the time of day is a day later, on BACK it is right again; the machine's own
clock is left alone, so C code sees nothing of it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable

LOGS_FULL, LOGS_FREE = signal.SIGUSR1, signal.SIGUSR2
AHEAD, BACK = signal.SIGALRM, signal.SIGVTALRM
_DAY = 86_400


class _Clock:
    """In place of ``time.time`` and ``time.time_ns``."""

    def __init__(self) -> None:
        self._seconds, self._nanoseconds = time.time, time.time_ns
        self._ahead = 0
        time.time = lambda: self._seconds() + self._ahead
        time.time_ns = lambda: self._nanoseconds() + self._ahead * 10**9

    def jump(self, ahead: int) -> Callable[[int, object], None]:
        def jump(_: int, __: object) -> None:
            self._ahead = ahead

        return jump


def _onto(descriptor: int) -> Callable[[int, object], None]:
    def switch(_: int, __: object) -> None:
        for output in (1, 2):
            os.dup2(descriptor, output)

    return switch


def main() -> None:
    module = sys.argv.pop(1)
    clock = _Clock()
    signal.signal(LOGS_FULL, _onto(os.open("/dev/full", os.O_WRONLY)))
    signal.signal(LOGS_FREE, _onto(os.dup(2)))
    signal.signal(AHEAD, clock.jump(_DAY))
    signal.signal(BACK, clock.jump(0))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
