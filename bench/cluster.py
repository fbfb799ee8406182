"""Worker processes of a benchmark, each on one core, driven over the gateway's own sessions.

There is no gateway process and no HTTP: what is measured is the workers, and the client takes
next to no CPU time from them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from baton import channels, wire
from baton.deadlines import UNLIMITED
from baton.errors import BatonError
from baton.generation import AttemptKey, Generation, Timings
from baton.identity import Identity, new_instance_id
from baton.liveness import Beat
from baton.sampling import SamplingSpec
from baton.v1 import worker_pb2, worker_pb2_grpc
from bench import cores
from bench.job import BLOCK_SIZE
from bench.pair import PeerFailed
from bench.shapes import ModelShape, checkpoint
from gateway.attempt import Attempt, Finished
from gateway.fleet import Report, Worker
from gateway.session import Session

#: Seconds until all workers are ready, until an idle one's books balance, and until one has ended.
_START, _SETTLE, _STOP = 120.0, 10.0, 20.0

#: Patient: with both cores busy a process may be late.
_BEAT = Beat(interval=1.0, missed=10)
_COMMON = (
    *("--host", "127.0.0.1", "--threads", "1", "--log-format", "json", "--exit-with-parent"),
    *("--heartbeat-interval", f"{_BEAT.interval:g}", "--heartbeats-missed", f"{_BEAT.missed}"),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One worker process: ``python -m module arguments`` on ``core``."""

    module: str
    core: int
    arguments: tuple[str, ...]


def model_flags(shape: ModelShape, tokens: int) -> tuple[str, ...]:
    """A model of that shape, and a pool for so many tokens. Nothing of it is ever reused."""
    directory, blocks = checkpoint(shape), -(-tokens // BLOCK_SIZE)
    return (
        *("--model", str(directory), "--no-prefix-cache"),
        *("--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks)),
    )


def decode_spec(flags: Sequence[str], transport: str, core: int) -> Spec:
    """A decode worker that gets every prompt's KV over one transport."""
    alone = ("--kv-transports", transport, "--local-prefill-queue", "0")
    return Spec("decode_worker", core, (*flags, *alone))


def unavailable(found: Mapping[str, Worker], transports: Sequence[str]) -> dict[str, str]:
    """Those that some worker cannot use here, and why."""
    return {
        transport.name: transport.unavailable
        for worker in found.values()
        for transport in worker.report.transports
        if transport.name in transports and transport.unavailable
    }


class Child:
    """A running process, whose log is read."""

    def __init__(self, spec: Spec, process: Process) -> None:
        loop = asyncio.get_running_loop()
        self._spec = spec
        self._process = process
        self._address: asyncio.Future[str] = loop.create_future()
        self._last: deque[str] = deque(maxlen=5)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, spec: Spec) -> Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", spec.module, *spec.arguments, *_COMMON),
            env={**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"},
            stdin=DEVNULL,
            stderr=PIPE,
        )
        with suppress(ProcessLookupError):
            cores.pin(process.pid, spec.core)  # while the interpreter starts: it has one thread
        return cls(spec, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> str:
        """Its address. Raises PeerFailed with its last words when it ends instead."""
        waiting = (self._address, self._reading)
        await asyncio.wait(waiting, timeout=_START, return_when=asyncio.FIRST_COMPLETED)
        if not self._address.done():
            said = " | ".join(self._last)
            raise PeerFailed(f"{self._spec.module} is not ready; it said last: {said}")
        return self._address.result()

    async def stop(self) -> None:
        """Returns when it has ended, by itself or not."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading
        self._address.cancel()

    async def _read(self) -> None:
        assert self._process.stderr is not None, "it was started with a pipe"
        async for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            self._last.append(line)
            with suppress(ValueError):
                said = json.loads(line)
                if said["event"] == "ready" and not self._address.done():
                    self._address.set_result(said["address"])


@asynccontextmanager
async def workers(specs: Mapping[str, Spec]) -> AsyncIterator[dict[str, Worker]]:
    """The workers by the names of their specs, all ready.

    Raises PeerFailed when one does not start, or, after the body, when KV blocks or anything else
    is still in use.
    """
    async with AsyncExitStack() as stack:
        children: dict[str, Child] = {}
        for name, spec in specs.items():
            children[name] = await Child.start(spec)
            stack.push_async_callback(children[name].stop)
        addresses = {name: await child.ready() for name, child in children.items()}
        yield {name: Worker(at, await report(at)) for name, at in addresses.items()}
        for name, address in addresses.items():
            await require_idle(name, address)


def _identity() -> Identity:
    return Identity(new_instance_id(), None)


async def report(address: str) -> Report:
    """What a worker says of itself."""
    async with channels.connect(address) as channel:
        request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(_identity()))
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request, wait_for_ready=True)
        try:
            async for status in call:
                return Report.from_wire(status)
        finally:
            call.cancel()
    raise PeerFailed(f"the worker at {address} says nothing of itself")


async def require_idle(name: str, address: str) -> None:
    """Raises PeerFailed unless the worker's books balance soon and nothing is left of anything."""
    async with channels.connect(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        deadline = time.monotonic() + _SETTLE
        while True:
            request = worker_pb2.CheckIntegrityRequest(idle=True)
            violations = (await stub.CheckIntegrity(request, timeout=_SETTLE)).violations
            if not violations:
                return
            if time.monotonic() > deadline:
                raise PeerFailed(f"{name} is not idle: {'; '.join(violations)}")
            await asyncio.sleep(0.1)


@asynccontextmanager
async def session(worker: Worker) -> AsyncIterator[Session]:
    """With a decode worker, as a gateway has it."""
    stale = Counter("stale", "tokens that nobody waits for", registry=CollectorRegistry())
    made = Session(worker, _identity(), _BEAT, stale, on_end=lambda: None)
    try:
        yield made
    finally:
        await made.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """When the tokens of one request came, and what the workers say of it."""

    request_id: str
    asked: float  #: ``time.monotonic``
    came: Sequence[float]  #: per token
    timings: Timings

    @property
    def ttft(self) -> float:
        """Seconds."""
        return self.came[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between one token and the next."""
        return [after - before for before, after in itertools.pairwise(self.came)]


def submit(to: Session, prompt: Sequence[int], max_tokens: int, prefill: Worker | None) -> Attempt:
    """Start a greedy request; without ``prefill`` the decode worker computes the prompt."""
    spec = SamplingSpec(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    key = AttemptKey(secrets.token_hex(8), 0)
    [attempt] = to.submit(Generation(key, tuple(prompt), (), spec, UNLIMITED), prefill)
    return attempt


async def ask(
    to: Session, prompt: Sequence[int], max_tokens: int, prefill: Worker | None
) -> Answer:
    """One request to its end. Raises PeerFailed when it fails."""
    asked, came = time.monotonic(), list[float]()
    attempt = submit(to, prompt, max_tokens, prefill)
    try:
        while attempt.finished is None:
            tokens = await attempt.take()
            came += [time.monotonic()] * len(tokens)
    except BatonError as error:
        raise PeerFailed(f"a request failed: {error}") from error
    finally:
        attempt.cancel()
    assert isinstance(attempt.ended, Finished), "it is finished"
    return Answer(attempt.key.request_id, asked, came, attempt.ended.timings)


class Background:
    """Sequences that decode beside what is measured, computed where they decode."""

    def __init__(self, to: Session, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        self._attempts = [submit(to, prompt, max_tokens, None) for prompt in prompts]
        self._came: list[list[float]] = [[] for _ in prompts]
        self._tasks = [
            asyncio.create_task(self._follow(*pair), name="background")
            for pair in zip(self._attempts, self._came, strict=True)
        ]

    async def running(self, tokens: int = 4) -> None:
        """Returns when each has had so many tokens. Raises PeerFailed when one has ended."""
        while min(len(came) for came in self._came) < tokens:
            self.require_running()
            await asyncio.sleep(0.01)

    def require_running(self) -> None:
        """Raises PeerFailed when one has ended."""
        for attempt in self._attempts:
            if attempt.ended is not None:
                raise PeerFailed(f"a sequence in the background ended: {attempt.ended}")

    def gaps(self, since: float, until: float) -> list[float]:
        """Seconds between tokens of one sequence that both came in that time, of all of them."""
        return [
            after - before
            for came in self._came
            for before, after in itertools.pairwise(came)
            if since <= before and after <= until
        ]

    async def stop(self) -> None:
        for attempt, task in zip(self._attempts, self._tasks, strict=True):
            attempt.cancel()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, attempt: Attempt, came: list[float]) -> None:
        while attempt.finished is None:
            tokens = await attempt.take()
            came += [time.monotonic()] * len(tokens)


@asynccontextmanager
async def background(
    to: Session, prompts: Sequence[Sequence[int]], max_tokens: int
) -> AsyncIterator[Background]:
    """A batch that decodes for the body; it has begun."""
    batch = Background(to, prompts, max_tokens)
    try:
        await batch.running()
        yield batch
        batch.require_running()
    finally:
        await batch.stop()
