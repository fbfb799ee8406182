"""A fleet of real processes, as ``baton up`` starts them, that a test can hurt.

Whoever talks to a prefill worker, the gateway or a decode worker, does so over a ``TcpLine``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import httpx

from baton.cli import ports
from baton.cli.display import Phase
from baton.cli.processes import Patience, Spec, Supervisor
from baton.cli.up import FrontPorts, plan
from baton.kv.shm import MEMORY_NAME
from baton.settings import UpSettings
from tests.e2e.cluster import START_SECONDS, Process, report
from tests.lines import TcpLine

_HOST = "127.0.0.1"
_READY = re.compile(r"(\w+) ready on (\S+), pid (\d+)")
_DIED = re.compile(r"(\w+) died")
#: Killed as often as the campaign likes, and back at once.
_PATIENCE = Patience(first_pause=0.1, longest_pause=0.1, deaths=10**6)
_PIDFD_GETFD = 438  # the number of this call on every architecture of Linux
_CONNECTED = "03"


class Journal:
    """What the processes and their supervisor say, in a file; and who is ready. A display."""

    def __init__(self, out: TextIO) -> None:
        self.ready: dict[str, Process] = {}
        self.deaths = 0
        self.transports: list[str] = []  #: as decode workers chose them
        self._out = out

    def note(self, text: str, style: str = "") -> None:
        if found := _READY.match(text):
            self.ready[found[1]] = Process(found[1], found[2], int(found[3]))
        elif found := _DIED.match(text):
            self.ready.pop(found[1], None)
            self.deaths += 1
        self.log("baton", text)

    def log(self, name: str, line: str) -> None:
        if " kv transport " in line and (found := re.search(r" name=(\w+)", line)):
            self.transports.append(found[1])
        self._out.write(f"{time.strftime('%H:%M:%S')} {name} | {line}\n")
        self._out.flush()

    def phase(self, name: str, phase: Phase) -> None:
        """How far a process has come is of no interest before it is ready."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process has of the machine."""

    resident_mb: float
    descriptors: int
    rings: int  #: mappings of shared KV memory


class Fleet:
    """Prefill workers p0, p1, ..., decode workers d0, d1, ..., and ``gateway``."""

    def __init__(self, journal: Journal, url: str, admin: str, lines: dict[str, TcpLine]) -> None:
        self.journal = journal
        self.url = url
        self.lines = lines  #: by the prefill worker's name
        self.admin = admin  #: URL
        self._started = 0

    @property
    def ready(self) -> dict[str, Process]:
        """Every process that is there, by name."""
        return {name: p for name, p in self.journal.ready.items() if p.alive}

    async def until_healthy(self, workers: int, seconds: float) -> None:
        """Wait until the gateway takes so many workers for healthy, and they are ready."""
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(seconds):
            while True:
                seen = (await http.get(f"{self.admin}/cluster")).json()["workers"]
                healthy = [worker for worker in seen if worker["state"] == "healthy"]
                if len(healthy) == workers and len(self.ready) == workers + 1:
                    return
                await asyncio.sleep(0.2)

    async def require_integrity(self, seconds: float) -> None:
        """Wait until every worker's idle check passes; fails with what is wrong."""
        for process in self.ready.values():
            if process.name == "gateway":
                continue
            deadline = time.monotonic() + seconds
            while wrong := await asyncio.to_thread(_violations, process.address):
                assert time.monotonic() < deadline, f"{process.name}: {wrong}"
                await asyncio.sleep(0.2)

    def resources(self, name: str) -> Resources:
        process = Path(f"/proc/{self.ready[name].pid}")
        resident = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
        assert resident is not None
        return Resources(
            resident_mb=int(resident[1]) / 1024,
            descriptors=len(list((process / "fd").iterdir())),
            rings=(process / "maps").read_text().count(f"memfd:{MEMORY_NAME}"),
        )


def _violations(address: str) -> list[str]:
    return list(report(address, idle=True).violations)


@asynccontextmanager
async def fleet(
    settings: UpSettings, log: Path, change: Callable[[Spec], Spec] = lambda spec: spec
) -> AsyncIterator[Fleet]:
    """A ready fleet; afterwards no process of it is left. ``change``: what is run instead."""
    unused = ports.free(_HOST)
    front = FrontPorts(next(unused), next(unused), next(unused))
    specs = plan(settings, front)
    async with AsyncExitStack() as stack:
        journal = Journal(stack.enter_context(log.open("w")))
        lines: dict[str, TcpLine] = {}
        for spec in specs:
            if spec.module == "prefill_worker":
                line = TcpLine(lambda address=spec.address: address)
                lines[spec.name] = await stack.enter_async_context(line.open())
        specs = [
            replace(spec, arguments=(*spec.arguments, "--advertise", lines[spec.name].address))
            if spec.name in lines
            else spec
            for spec in specs
        ]
        supervisor = Supervisor(
            [change(spec) for spec in specs],
            journal,
            grace=settings.grace,
            restart=True,
            patience=_PATIENCE,
        )
        started = asyncio.Event()
        keeping = asyncio.create_task(supervisor.run(started.set))
        try:
            async with asyncio.timeout(START_SECONDS):
                waiting = asyncio.create_task(started.wait())
                await asyncio.wait((waiting, keeping), return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():
                    keeping.result()
            yield Fleet(
                journal, f"http://{_HOST}:{front.api}", f"http://{_HOST}:{front.admin}", lines
            )
        finally:
            waiting.cancel()
            for process in journal.ready.values():
                if process.alive and process.stopped:
                    process.send(signal.SIGCONT)
            supervisor.stop()
            await keeping


def cut_links(process: Process) -> int:
    """Shut every link of a prefill worker's shared memory; returns how many there were.

    The sockets are the process's own: they are duplicated from it and shut here.
    """
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    links = {
        row[6]
        for row in table
        if len(row) == 8 and row[5] == _CONNECTED and row[7].startswith("@baton-kv-")
    }
    cut = 0
    libc = ctypes.CDLL(None, use_errno=True)
    peer = os.pidfd_open(process.pid)
    try:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if str(entry.readlink()).removeprefix("socket:[").rstrip("]") in links:
                    copy = libc.syscall(_PIDFD_GETFD, peer, int(entry.name), 0)
                    if copy < 0:
                        raise OSError(ctypes.get_errno(), "pidfd_getfd")
                    with closing(socket.socket(fileno=copy)) as link:
                        link.shutdown(socket.SHUT_RDWR)
                        cut += 1
    finally:
        os.close(peer)
    return cut
