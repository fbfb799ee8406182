"""The processes of each side of the comparison, each on its core."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench import cores
from bench.gateway.client import Seen
from bench.gateway.steps import Clock

MODEL = "letters"
_CHECKPOINT = Path(__file__).parents[2] / "model" / "demo" / "checkpoint"
#: Seconds until a process is ready, and between looks; and until one has ended.
_START, _LOOK, _STOP = 60.0, 0.2, 10.0
#: A measured machine is busy: nobody is given up for being late.
_PATIENT = ("--heartbeat-interval", "10", "--stall-timeout", "1000")


@dataclass(frozen=True, slots=True)
class Load:
    """What a client asks."""

    name: str
    streams: int  #: at a time
    tokens: int  #: of each answer
    interval: float  #: seconds between two tokens of a stream
    whole: bool = False  #: answers are no streams


@dataclass(frozen=True, slots=True)
class Side:
    """Something to measure, running."""

    name: str
    address: str
    pids: dict[str, int]  #: the first is what is measured, the others share the client's core
    clock: Path
    core: int  #: the client's

    @property
    def measured(self) -> str:
        return next(iter(self.pids))

    async def ask(self, load: Load, warm: float, seconds: float) -> Seen:
        """Raises RuntimeError with the client's last words when it fails."""
        clock = Clock(self.clock)
        clock.interval = load.interval
        client = await _start(
            self.core,
            *(sys.executable, "-m", "bench.gateway.client", "--address", self.address),
            *("--model", MODEL, "--streams", str(load.streams), "--tokens", str(load.tokens)),
            *("--warm", str(warm), "--seconds", str(seconds), "--clock", str(self.clock)),
            *("--pids", json.dumps(self.pids), *(["--whole"] if load.whole else [])),
        )
        try:
            said, _ = await client.communicate()
        finally:
            clock.interval = 0.0
            await _stop(client)
        if client.returncode:
            raise RuntimeError(f"{self.name}, {load.name}: {said.decode()[-500:]}")
        return Seen(**json.loads(said.splitlines()[-1]))


@asynccontextmanager
async def gateway(folder: Path, workers: int) -> AsyncIterator[Side]:
    """Our own, with so many decode workers."""
    near, far = cores.two()
    clock = folder / "gateway.clock"
    Clock(clock)
    async with AsyncExitStack() as stack:
        source, addresses = await stack.enter_async_context(
            _announcing(
                far,
                *("bench.gateway.worker", "--model", MODEL, "--checkpoint", str(_CHECKPOINT)),
                *("--workers", str(workers), "--clock", str(clock)),
            )
        )
        port, admin = _free_port(), _free_port()
        process = await stack.enter_async_context(
            _running(
                near,
                *(sys.executable, "-m", "gateway", "--model", str(_CHECKPOINT)),
                *("--served-model-name", MODEL, "--decode", addresses, "--rpc-port", "0"),
                *("--port", str(port), "--admin-port", str(admin), "--log-level", "warning"),
                *("--max-queue-requests", "20000", "--max-queue-tokens", "1000000", *_PATIENT),
            )
        )
        address = f"127.0.0.1:{port}"
        await _answers(address, process)
        yield Side("gateway", address, {"gateway": process.pid, "workers": source.pid}, clock, far)


@asynccontextmanager
async def bare(folder: Path, way: str) -> AsyncIterator[Side]:
    """A server that makes its own tokens."""
    near, far = cores.two()
    clock = folder / f"{way}.clock"
    Clock(clock)
    async with _bare(near, way, clock) as (process, address):
        await _answers(address, process)
        yield Side(way, address, {way: process.pid}, clock, far)


@asynccontextmanager
async def router(folder: Path, program: Path) -> AsyncIterator[Side]:
    """vllm-router or sglang-router, in front of a bare server on the client's core."""
    near, far = cores.two()
    name = program.name
    clock = folder / f"{name}.clock"
    Clock(clock)
    verb = ["launch"] if name == "sglang-router" else []
    async with AsyncExitStack() as stack:
        source, behind = await stack.enter_async_context(_bare(far, "StreamingResponse", clock))
        port, metrics = _free_port(), _free_port()
        process = await stack.enter_async_context(
            _running(
                near,
                *(str(program), *verb, "--host", "127.0.0.1", "--port", str(port)),
                *("--worker-urls", f"http://{behind}", "--policy", "round_robin"),
                *("--prometheus-port", str(metrics), "--log-level", "error"),
            )
        )
        address = f"127.0.0.1:{port}"
        await _answers(address, process)
        yield Side(name, address, {name: process.pid, "source": source.pid}, clock, far)


def _bare(core: int, way: str, clock: Path) -> AbstractAsyncContextManager[tuple[Process, str]]:
    arguments = ("--way", way, "--model", MODEL, "--clock", str(clock))
    return _announcing(core, "bench.gateway.bare", *arguments)


@asynccontextmanager
async def _announcing(
    core: int, module: str, *arguments: str
) -> AsyncIterator[tuple[Process, str]]:
    """A process of ours that prints ``ready WHERE`` first."""
    async with _running(core, sys.executable, "-m", module, *arguments) as process:
        assert process.stdout is not None, "it was started with a pipe"
        line = (await process.stdout.readline()).decode()
        if not line.startswith("ready "):
            rest = (await process.stdout.read()).decode()
            raise RuntimeError(f"{module} is not ready; it said: {line}{rest}")
        yield process, line.split()[1]


@asynccontextmanager
async def _running(core: int, *command: str) -> AsyncIterator[Process]:
    process = await _start(core, *command)
    try:
        yield process
    finally:
        await _stop(process)


async def _start(core: int, *command: str) -> Process:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    with suppress(ProcessLookupError):
        cores.pin(process.pid, core)  # while the interpreter starts: it has one thread
    return process


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _answers(address: str, process: Process) -> None:
    """Wait for the first answer. Raises RuntimeError when there is none in time."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    last = ""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        for _ in range(round(_START / _LOOK)):
            if process.returncode is not None:
                assert process.stdout is not None, "it was started with a pipe"
                said = (await process.stdout.read()).decode()
                raise RuntimeError(f"it ended before it was ready: {said[-800:]}")
            try:
                answer = await client.post("/v1/completions", json=body)
                if answer.status_code == 200:
                    return
                last = answer.text
            except httpx.TransportError as error:
                last = repr(error)
            await asyncio.sleep(_LOOK)
    raise RuntimeError(f"{address} does not answer: {last[:300]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def routers(folder: Path | None) -> Sequence[Path]:
    """Those that are installed in a virtual environment. Raises ValueError when none is."""
    if folder is None:
        return ()
    names = ("vllm-router", "sglang-router")
    found = [path for name in names if (path := folder / "bin" / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has neither of {', '.join(names)} in bin/")
    return found
