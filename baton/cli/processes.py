"""A small supervisor: starts processes, follows them until they are ready, keeps them alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from baton.cli.display import Display, Phase

_PROBE_INTERVAL = 0.2
_READ_BYTES = 65_536


class StartFailed(Exception):
    """A process ended before it was ever ready."""


class GaveUp(Exception):
    """A process died too often in a row."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One process to run: ``python -m module arguments``."""

    name: str  #: as in the log prefix, such as "p0"
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    address: str  #: host:port it will listen on
    cores: frozenset[int] | None  #: None: any
    probe: Callable[[], Awaitable[Phase]]  #: never raises


@dataclass(frozen=True, slots=True)
class Patience:
    """When a dead process is started again, and when no longer."""

    first_pause: float = 0.5
    longest_pause: float = 10.0
    deaths: int = 5  #: in a row
    forgiven_after: float = 10.0  #: seconds alive after which earlier deaths are forgotten

    def pause(self, deaths: int) -> float:
        """Seconds before the start that follows the ``deaths``-th death in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** (deaths - 1))


class Child:
    """One running process. Its output goes to the display; the last lines are kept."""

    def __init__(self, spec: Spec, process: asyncio.subprocess.Process, display: Display) -> None:
        self.spec = spec
        self.began = time.monotonic()
        self._process = process
        self._display = display
        self._tail: deque[str] = deque(maxlen=20)
        self._pump = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, spec: Spec, display: Display) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            spec.module,
            *spec.arguments,
            env=dict(spec.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches baton alone, which stops the others in order.
            start_new_session=True,
        )
        if spec.cores is not None:
            # The interpreter is still starting; threads made later inherit the set.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, spec.cores)
        return cls(spec, process, display)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive_for(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    async def wait(self) -> int:
        """The exit status, once the process has ended and its last line is shown."""
        code = await self._process.wait()
        await asyncio.shield(self._pump)
        return code

    def reason(self, code: int) -> str:
        """Why it ended: its own last words, else the signal or exit status."""
        if code < 0:
            perhaps = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{perhaps}"
        words = next((line for line in reversed(self._tail) if line.strip()), "")
        return words.strip().removeprefix(f"{self.spec.module}: ") or f"exit status {code}"

    async def stop(self, grace: float) -> None:
        """TERM; after ``grace`` seconds KILL. Returns when the process is gone."""
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            self._display.note(f"{self.spec.name} did not stop in {grace:g} s; killed", "yellow")
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send ``number`` to the process and its own children, if it still lives."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._say(line)
        if rest:
            self._say(rest)

    def _say(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        self._tail.append(line)
        self._display.log(self.spec.name, line)


class Supervisor:
    """Runs all specs until ``stop`` is called or one of them cannot be kept alive."""

    def __init__(
        self,
        specs: Sequence[Spec],
        display: Display,
        *,
        grace: float,
        restart: bool,
        patience: Patience | None = None,
    ) -> None:
        self._specs = specs
        self._display = display
        self._grace = grace
        self._restart = restart
        self._patience = patience or Patience()
        self._children: dict[str, Child] = {}
        self._ready = {spec.name: asyncio.Event() for spec in specs}
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for an orderly end; asked twice, everything is killed."""
        if self._stop.is_set():
            for child in self._children.values():
                child.signal(signal.SIGKILL)
        self._stop.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call ``on_ready`` once when all is ready, return after ``stop``.

        Raises StartFailed or GaveUp. No process is left when this returns, however it does.
        """
        tasks = [asyncio.create_task(self._keep(spec)) for spec in self._specs]
        tasks.append(asyncio.create_task(self._announce(on_ready)))
        end = asyncio.create_task(self._stop.wait())
        try:
            waiting = {*tasks, end}
            while not end.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in [*tasks, end]:
                task.cancel()
            await asyncio.gather(*tasks, end, return_exceptions=True)
            await self._stop_all()

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        for event in self._ready.values():
            await event.wait()
        on_ready()

    async def _keep(self, spec: Spec) -> None:
        """Run one spec, again and again; returns only where nothing is restarted."""
        deaths = 0
        while True:
            child = await Child.start(spec, self._display)
            self._children[spec.name] = child
            if await self._until_ready(child):
                self._ready[spec.name].set()
                self._display.phase(spec.name, Phase.READY)
                took = f"{child.alive_for:.1f} s"
                self._display.note(f"{spec.name} ready on {spec.address}, pid {child.pid}, {took}")
            reason = child.reason(await child.wait())
            if not self._ready[spec.name].is_set():
                raise StartFailed(f"{spec.name} ({spec.module}) could not start: {reason}")
            deaths = 1 if child.alive_for > self._patience.forgiven_after else deaths + 1
            if not self._restart:
                self._display.note(f"{spec.name} died: {reason}", "red")
                return
            if deaths >= self._patience.deaths:
                raise GaveUp(f"{spec.name} died {deaths} times in a row, the last time: {reason}")
            pause = self._patience.pause(deaths)
            self._display.note(f"{spec.name} died: {reason}; again in {pause:g} s", "red")
            await asyncio.sleep(pause)

    async def _until_ready(self, child: Child) -> bool:
        """True when the process says that it is ready, False when it ended before."""
        ended = asyncio.create_task(child.wait())
        try:
            while not ended.done():
                phase = await child.spec.probe()
                if phase is Phase.READY:
                    return not ended.done()
                self._display.phase(child.spec.name, phase)
                await asyncio.wait([ended], timeout=_PROBE_INTERVAL)
            return False
        finally:
            ended.cancel()

    async def _stop_all(self) -> None:
        """The gateway first, so that no client sees its workers leave; then all workers."""
        front = [child for child in self._children.values() if child.spec.module == "gateway"]
        back = [child for child in self._children.values() if child.spec.module != "gateway"]
        for group in (front, back):
            await asyncio.gather(*(child.stop(self._grace) for child in group))
