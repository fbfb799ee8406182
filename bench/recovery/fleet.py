"""The processes: a gateway and mock workers, each worker behind a ``Line``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from baton.cli import ports
from baton.cli.display import Display, Phase
from baton.cli.processes import Patience, Supervisor
from baton.cli.up import FrontPorts, plan
from baton.identity import CompatibilityClass
from baton.settings import UpSettings
from bench.cluster import require_idle
from bench.pair import PeerFailed
from bench.recovery.line import Line

_HOST = "127.0.0.1"
#: Seconds until all processes are ready, and until a worker is well again.
_START, _BACK = 180.0, 60.0
_READY = re.compile(r"(\w+) ready on \S+, pid (\d+)")
#: However often they are killed, they are started again.
_PATIENCE = Patience(first_pause=1.0, longest_pause=1.0, deaths=10**6)


class Journal(Display):
    """Shows nothing, and remembers the processes."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True), [])
        self.pids: dict[str, int] = {}

    def note(self, text: str, style: str = "") -> None:
        if found := _READY.match(text):
            self.pids[found[1]] = int(found[2])

    def log(self, name: str, line: str) -> None:
        """Of no interest here."""

    def phase(self, name: str, phase: Phase) -> None:
        """Likewise."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers p0, p1, ..., d0, d1, ... and a gateway."""

    api: int  #: port
    admin: int  #: port
    model: str
    lines: dict[str, Line]  #: by the worker's name
    journal: Journal

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.journal.pids[name], number)

    async def busiest(self, letter: str) -> tuple[str, int]:
        """The worker of a kind that has most sequences, as the gateway sees it, and how many."""
        loads = {worker["address"]: worker["load"] for worker in await self._workers()}

        def sequences(name: str) -> int:
            load = loads.get(self.lines[name].address)  # none while it is late with its beat
            return int(load["running"] + load["waiting"]) if load else 0

        name = max((name for name in self.lines if name.startswith(letter)), key=sequences)
        return name, sequences(name)

    async def until_well(self) -> None:
        """Wait until the gateway finds every worker healthy. Raises PeerFailed."""
        deadline = time.monotonic() + _BACK
        while len(await self._workers()) < len(self.lines):
            if time.monotonic() > deadline:
                raise PeerFailed(f"not all workers are healthy after {_BACK:g} s")
            await asyncio.sleep(0.1)

    async def compatibility(self) -> CompatibilityClass:
        """Of all workers."""
        return CompatibilityClass(**(await self._workers())[0]["compatibility"])

    async def _workers(self) -> list[dict[str, Any]]:
        seen = json.loads(await self._get("/cluster"))["workers"]
        return [worker for worker in seen if worker["state"] == "healthy"]

    async def _get(self, path: str) -> str:
        def get() -> str:
            with urllib.request.urlopen(f"http://{_HOST}:{self.admin}{path}", timeout=10) as reply:
                found: bytes = reply.read()
                return found.decode()

        return await asyncio.to_thread(get)


@asynccontextmanager
async def fleet(settings: UpSettings) -> AsyncIterator[Fleet]:
    """A ready fleet; afterwards no process of it is left.

    Raises StartFailed, or PeerFailed, as when a worker's books do not balance after the body.
    """
    unused = ports.free(_HOST)
    front = FrontPorts(next(unused), next(unused), next(unused))
    async with AsyncExitStack() as stack:
        specs, lines = [], dict[str, Line]()
        for spec in plan(settings, front):
            if spec.name == "gateway":
                specs.append(spec)
                continue
            line = lines[spec.name] = await stack.enter_async_context(Line(spec.address).open())
            arguments = (*spec.arguments, "--advertise", line.address)
            specs.append(replace(spec, arguments=arguments))
        journal = Journal()
        supervisor = Supervisor(
            specs, journal, grace=settings.grace, restart=True, patience=_PATIENCE
        )
        ready = asyncio.Event()
        keeping = asyncio.create_task(supervisor.run(ready.set))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait(
                (waiting, keeping), timeout=_START, return_when=asyncio.FIRST_COMPLETED
            )
            if keeping.done():
                keeping.result()
            if not ready.is_set():
                raise PeerFailed(f"not all processes are ready after {_START:g} s")
            yield Fleet(front.api, front.admin, settings.served_name, lines, journal)
            for name, line in lines.items():
                await require_idle(name, line.address)
        finally:
            waiting.cancel()
            supervisor.stop()
            await keeping
