"""How late an event loop is to take what has come.

A thread writes to a socket at a steady beat; the loop, when it reads, sees how long ago the beat
was due. So it is what an answer's event suffers: the loop that is busy, the interpreter's lock and
the kernel that gives the core to another, but not the coarseness of the loop's own timers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from threading import Event, Thread
from types import TracebackType

#: Seconds between beats.
BEAT = 0.01
_DUE = struct.Struct("d")


class Lag:
    """Measures from ``with`` to its end; on the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.samples: list[float] = []  #: seconds, beat by beat
        self._loop = loop
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._here.setblocking(False)
        self._ending = Event()
        self._beating = Thread(target=self._beat)

    def __enter__(self) -> Lag:
        self._loop.add_reader(self._here, self._take)
        self._beating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._loop.remove_reader(self._here)
        self._here.close()  # a write that waits for a reader fails
        self._beating.join()
        self._there.close()

    def _take(self) -> None:
        (due,) = _DUE.unpack(self._here.recv(_DUE.size))
        self.samples.append(time.monotonic() - due)

    def _beat(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            due += BEAT
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self._there.send(_DUE.pack(due))
            except OSError:  # the other end is closed
                return
