"""What a worker process has open, so that a leak of anything but KV shows as well."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.kv.shm import MEMORY_NAME

_DESCRIPTORS = Path("/proc/self/fd")


class Census:
    """Counts calls, tasks and descriptors; compares the last two with a baseline.

    Connected peers are no leak, so what stands for them is left out: gRPC's own tasks (its
    handlers are ``calls``), the tasks of streams that last as long as the peer, connected
    sockets, and the memory shared with a peer.
    """

    def __init__(self) -> None:
        self.calls = 0  #: Prefill calls, KV readings and attempts under way
        self.tasks_at_start = 0
        self.descriptors_at_start = 0
        self._standing: set[asyncio.Task[object]] = set()

    def mark(self) -> None:
        """Take the baseline; called once, when the worker is ready."""
        self.tasks_at_start, self.descriptors_at_start = self.tasks, self.descriptors

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts one call for as long as the body runs."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    def stand(self, task: asyncio.Task[None]) -> None:
        """Leave out a task that lives as long as a peer is connected."""
        self._standing.add(task)
        task.add_done_callback(self._standing.discard)

    @property
    def tasks(self) -> int:
        """Tasks of this loop that are neither gRPC's nor left out."""
        ours = (t for t in asyncio.all_tasks() if not _is_grpc(t) and t not in self._standing)
        return sum(1 for _ in ours)

    @property
    def descriptors(self) -> int:
        """Open file descriptors that stand for no peer; 0 where /proc is not there."""
        if not _DESCRIPTORS.is_dir():
            return 0
        return sum(1 for entry in _DESCRIPTORS.iterdir() if not _is_connection(entry))

    def violations(self) -> list[str]:
        """What is not as it was when the worker became ready; one line each."""
        wrong = []
        if self.calls:
            wrong.append(f"idle, but {self.calls} calls are open")
        if self.tasks > self.tasks_at_start:
            wrong.append(f"idle, but {self.tasks} tasks run, {self.tasks_at_start} at the start")
        if self.descriptors > self.descriptors_at_start:
            wrong.append(
                f"idle, but {self.descriptors} descriptors are open, "
                f"{self.descriptors_at_start} at the start"
            )
        return wrong


def _is_grpc(task: asyncio.Task[object]) -> bool:
    return type(task.get_coro()).__module__.startswith("_cython")


def _is_connection(entry: Path) -> bool:
    """Whether an entry of /proc/self/fd is a connection, or memory shared over one (or the
    listing's own, closed now)."""
    try:
        target = str(entry.readlink())
        if not target.startswith("socket:"):
            return target.startswith(f"/memfd:{MEMORY_NAME}")
        with socket.socket(fileno=os.dup(int(entry.name))) as endpoint:
            endpoint.getpeername()
            return endpoint.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    except OSError as error:
        return error.errno != errno.ENOTCONN
