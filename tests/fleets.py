"""A fleet of real processes, as ``baton up`` starts them, that a test can hurt.

Whoever talks to a worker, a gateway or another worker, does so over a ``TcpLine``; and so does
whoever joins a gateway.
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
from tests.etcd import Etcd
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
    """Prefill workers p0, p1, ..., decode workers d0, d1, ..., and gateways g0, g1, ..."""

    def __init__(
        self,
        journal: Journal,
        fronts: dict[str, FrontPorts],
        lines: dict[str, TcpLine],
        etcd: Etcd | None,
    ) -> None:
        self.journal = journal
        self.etcd = etcd  #: where they meet; None when workers join the gateways themselves
        self.lines = (
            lines  #: before each worker's port, where the workers join each gateway, and etcd
        )
        self._fronts = fronts

    @property
    def urls(self) -> dict[str, str]:
        """Where each gateway's API is."""
        return {name: f"http://{_HOST}:{front.api}" for name, front in self._fronts.items()}

    @property
    def admins(self) -> dict[str, str]:
        """Where each gateway tells how things stand."""
        return {name: f"http://{_HOST}:{front.admin}" for name, front in self._fronts.items()}

    @property
    def ready(self) -> dict[str, Process]:
        """Every process that is there, by name."""
        return {name: p for name, p in self.journal.ready.items() if p.alive}

    async def until_healthy(self, workers: int, seconds: float) -> None:
        """Wait until every gateway takes so many workers for healthy, and all are ready."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http, asyncio.timeout(seconds):
            while len(self.ready) < workers + len(self._fronts):
                await asyncio.sleep(0.2)
            for admin in self.admins.values():
                while len(await _healthy(http, admin)) != workers:
                    await asyncio.sleep(0.2)

    async def until_well(self, name: str, seconds: float) -> None:
        """Wait until a worker is healthy in every gateway's eyes, or a gateway ready for requests;
        others may be disturbed meanwhile."""
        gateway = name in self._fronts
        asked = [f"{self.urls[name]}/ready"] if gateway else list(self.admins.values())
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http:
            async with asyncio.timeout(seconds):
                while asked:
                    with suppress(httpx.TransportError):
                        if gateway:
                            well = (await http.get(asked[0])).status_code == 200
                        else:
                            well = self.lines[name].address in await _healthy(http, asked[0])
                        if well and name in self.ready:
                            asked.pop(0)
                            continue
                    await asyncio.sleep(0.1)

    async def require_integrity(self, seconds: float) -> None:
        """Wait until every worker's idle check passes; fails with what is wrong."""
        for process in self.ready.values():
            if process.name in self._fronts:
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


async def _healthy(http: httpx.AsyncClient, admin: str) -> list[str]:
    """Addresses of the workers that a gateway takes for healthy."""
    seen = (await http.get(f"{admin}/cluster")).json()["workers"]
    return [worker["address"] for worker in seen if worker["state"] == "healthy"]


def _violations(address: str) -> list[str]:
    return list(report(address, idle=True).violations)


@asynccontextmanager
async def fleet(
    settings: UpSettings,
    log: Path,
    *,
    gateways: int = 1,
    etcd: Etcd | None = None,
    launch: Callable[[Spec], Spec] = lambda spec: spec,
) -> AsyncIterator[Fleet]:
    """A ready fleet; afterwards no process of it is left. ``launch`` may change how each process
    is started."""
    fronts = _fronts(gateways)
    async with AsyncExitStack() as stack:
        journal = Journal(stack.enter_context(log.open("w")))
        lines: dict[str, TcpLine] = {}
        specs = _specs(settings, fronts)
        behind = {name: f"{_HOST}:{front.rpc}" for name, front in fronts.items()}
        behind |= {spec.name: spec.address for spec in specs if spec.name not in fronts}
        behind |= {"e0": etcd.address} if etcd else {}
        for name, address in behind.items():
            line = TcpLine(lambda address=address: address)
            lines[name] = await stack.enter_async_context(line.open())
        meeting = f"etcd:{lines['e0'].address}" if etcd else "embedded"
        join = meeting if etcd else ",".join(lines[name].address for name in fronts)
        specs = [
            _with(spec, "--membership", meeting)
            if spec.name in fronts
            else _with(spec, "--join", join, "--advertise", lines[spec.name].address)
            for spec in specs
        ]
        supervisor = Supervisor(
            [launch(spec) for spec in specs],
            journal,
            grace=settings.grace,
            restart=True,
            patience=_PATIENCE,
        )
        async with _kept(supervisor, journal):
            yield Fleet(journal, fronts, lines, etcd)


def _fronts(count: int) -> dict[str, FrontPorts]:
    unused = ports.free(_HOST)
    return {f"g{i}": FrontPorts(next(unused), next(unused), next(unused)) for i in range(count)}


def _specs(settings: UpSettings, fronts: dict[str, FrontPorts]) -> list[Spec]:
    """The workers, and a gateway for each of ``fronts``."""
    plans = {name: plan(settings, front) for name, front in fronts.items()}
    *workers, _ = next(iter(plans.values()))
    return [*workers, *(replace(specs[-1], name=name) for name, specs in plans.items())]


def _with(spec: Spec, flag: str, value: str, *more: str) -> Spec:
    """The same process with another value of a flag that it has, and more arguments."""
    arguments = list(spec.arguments)
    arguments[arguments.index(flag) + 1] = value
    return replace(spec, arguments=(*arguments, *more))


@asynccontextmanager
async def _kept(supervisor: Supervisor, journal: Journal) -> AsyncIterator[None]:
    """All processes are ready, and kept alive; afterwards none is left."""
    started = asyncio.Event()
    keeping = asyncio.create_task(supervisor.run(started.set))
    waiting = asyncio.create_task(started.wait())
    try:
        async with asyncio.timeout(START_SECONDS):
            await asyncio.wait((waiting, keeping), return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        yield
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
