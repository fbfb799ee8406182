"""Random faults in the middle of hand-offs, over every transport, workers of one process.

Whatever happens: each stream ends exact or with a typed, retryable error, from which it goes on
exactly; blocks that bytes may still land in are not reused; in the end nothing is left of
anything. A test's number is its seed. tests/faults does the same to real processes.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from socket import AF_UNIX
from typing import Any

import psutil
import pytest

from baton.errors import (
    BatonError,
    DecodeLost,
    HandoffFailed,
    Preempted,
    PrefillFull,
    PrefillLost,
)
from baton.identity import Role
from baton.kv.shm.wire import name_of
from model.engine.mock_runner import CostModel
from tests.faulty import (
    CORRUPT,
    DROP,
    DUPLICATE,
    REORDER,
    TRUNCATE,
    FaultySink,
    LateRunner,
    LateStore,
    Tampering,
    canary,
)
from tests.lines import Line, ShmLine, Tamper, TcpLine, passing
from tests.shm import descriptors
from tests.workers import (
    LAYOUT,
    Cluster,
    SessionDouble,
    Stream,
    cluster,
    expected,
    generation,
    kv_relay,
    prompt,
    session,
)

FAULTS = 20  #: per transport

WORKERS = ("kill prefill", "kill decode", "preempt prefill", "preempt decode", "cancel")
BLOCKS = (DROP, DUPLICATE, REORDER, TRUNCATE, CORRUPT)
LINES = ("cut", "slow", "stall", "cancel stalled")
#: What can be done to whom: to the workers and to blocks between transport and pool for all, to
#: the line and the messages on it where there is one that a test can stand in. A transport
#: without is [*WORKERS, *BLOCKS].
KINDS: dict[str, list[str]] = {
    "grpc": [*WORKERS, *BLOCKS, *LINES, *(f"{kind} message" for kind in BLOCKS)],
    "shm": [*WORKERS, *BLOCKS, *LINES, *(f"{kind} message" for kind in (*BLOCKS[:4], CORRUPT))],
}

#: How an attempt may end that another takes up.
LOST = (HandoffFailed, PrefillFull, PrefillLost, DecodeLost, Preempted)

#: A chunk at a time, so that each layer comes in several pieces.
SLOW = CostModel(step_s=0.01)
#: A page, and eight slots of one block.
RING = {"shm_bytes": 4096 + 8 * LAYOUT.block_bytes}
BYTES_PER_SECOND = 100_000.0


def left_open() -> list[str]:
    """What this process has open, but for the pollers of asyncio and gRPC, which have no peer."""
    sockets = psutil.Process().net_connections("all")
    named = [str(each) for each in sockets if each.family != AF_UNIX or "baton" in each.laddr]
    pollers = ("socket:", "anon_inode:")
    return named + [link for link in descriptors() if not link.startswith(pollers)]


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = left_open()
    yield
    gc.collect()  # of the event loop, which is closed by now, and of tracebacks
    deadline = time.monotonic() + 30.0
    while len(left := left_open()) > len(before):  # gRPC's threads close what was theirs
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@dataclass(slots=True)
class Stand:
    """A prefill worker and two decode workers; the line is before the prefill worker."""

    workers: Cluster
    line: Line | None
    tampering: Tampering[Any] | None

    async def progress(self, pieces: int, streams: list[Stream]) -> None:
        """Until the first decode worker has so many pieces, or one was tampered with."""
        store = self.workers.decode[0].runtime.store
        assert isinstance(store, LateStore)
        async with asyncio.timeout(60.0):
            while store.written < pieces and not (self.tampering and self.tampering.struck):
                assert not all(stream.ended.done() for stream in streams), "the fault comes late"
                await asyncio.sleep(0.001)


Change = Callable[[bytes], bytes]


def _frame(frame: bytes, change: Change) -> bytes:
    return change(frame)


def _first(message: tuple[Any, Any], change: Change) -> tuple[Any, Any]:
    return change(message[0]), message[1]


def _second(message: tuple[Any, Any], change: Change) -> tuple[Any, Any]:
    return message[0], change(message[1])


@asynccontextmanager
async def stand(
    transport: str, kind: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stand]:
    """The workers, the line between them, and whatever tampers with blocks or messages."""
    what, _, message = kind.partition(" ")
    tampering: Tampering[Any] | None = None
    if what in (*BLOCKS, CORRUPT):
        change = _second if not message else _frame if transport == "grpc" else _first
        tampering = Tampering(what, rng.randrange(6), rng, change)
    tampers = iter([tampering or passing])

    def next_tamper() -> Tamper[Any]:
        """Of one hand-off: of the first one it is the fault's."""
        return next(tampers, passing)

    if not message:
        monkeypatch.setattr(
            "decode_worker.attempt.Sink",
            lambda *arguments, **named: FaultySink(*arguments, **named, tamper=next_tamper()),
        )
    # A bit that flips in a block's payload shows by its checksum alone.
    settings: dict[str, Any] = {"cost": SLOW, "num_blocks": 140, "kv_checksums": "on"}
    settings["make_runner"] = partial(LateRunner, rng=rng)
    async with AsyncExitStack() as stack:
        if transport == "grpc":
            tcp = await _tcp_line(stack, next_tamper if message else lambda: passing)
            workers = await stack.enter_async_context(
                cluster(decode=2, kv_address=tcp.address, **settings)
            )
            tcp.behind(workers)
            stack.push_async_callback(tcp.close)
            yield Stand(workers, tcp, tampering)
            return
        if transport == "shm":
            monkeypatch.setattr("baton.kv.shm.outlet.name_of", _behind)
        workers = await stack.enter_async_context(
            cluster(decode=2, kv_transports=[transport, "grpc"], **RING, **settings)
        )
        line: Line | None = None
        if transport == "shm":
            line = await stack.enter_async_context(
                _shm_line(workers, next_tamper() if message else passing)
            )
        yield Stand(workers, line, tampering)


class KvLine(TcpLine):
    """In front of the prefill worker of a cluster that is made later."""

    workers: Cluster

    def behind(self, workers: Cluster) -> None:
        self.workers = workers


async def _tcp_line(stack: AsyncExitStack, next_tamper: Callable[[], Tamper[bytes]]) -> KvLine:
    """A line before a relay that tampers with frames, before the prefill worker."""

    async def tamper(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        change, number = next_tamper(), 0
        async for frame in frames:
            for passed in change(number, frame):
                yield passed
            number += 1

    relay = await stack.enter_async_context(
        kv_relay(tamper, lambda: line.workers.prefill[0].address)
    )
    line = KvLine(lambda: relay)
    await stack.enter_async_context(line.open())
    return line


def _shm_line(workers: Cluster, tamper: Tamper[Any]) -> Any:
    instance_id = workers.prefill[0].instance_id
    return ShmLine(
        name_of(instance_id),
        _behind(instance_id),
        down=tamper,
        message_bytes=LAYOUT.block_bytes,
    ).open()


def _behind(instance_id: str) -> str:
    """Where the outlet listens, as the line listens where it should."""
    return name_of(f"behind-{instance_id}")


async def strike(
    kind: str,
    s: SessionDouble,
    streams: list[Stream],
    stand: Stand,
    lasting: ExitStack,
    rng: random.Random,
) -> None:
    """Let the fault happen at some moment. What lasts does so until ``lasting`` is closed."""
    await stand.progress(rng.randrange(1, 6), streams)
    if stand.tampering:
        return
    assert stand.line is None or stand.line.connections, "KV went another way"
    match kind, stand.line:
        case "kill prefill", _:
            await stand.workers.prefill[0].kill()
        case "kill decode", _:
            await stand.workers.decode[0].kill()
        case "preempt prefill" | "preempt decode", _:
            victims = {
                "preempt prefill": stand.workers.prefill,
                "preempt decode": stand.workers.decode,
            }
            engine = victims[kind][0].runtime.engine
            engine.drain(Preempted("by the test"))
            engine.resume()
        case "cancel", _:
            _cancel(s, streams)
        case "cut", Line() as line:
            assert line.cut()
        case "slow", Line() as line:
            lasting.enter_context(line.slow(BYTES_PER_SECOND))
        case "stall", Line() as line:
            with line.slow(0):
                await asyncio.sleep(rng.uniform(0.05, 0.4))
        case "cancel stalled", Line() as line:
            lasting.enter_context(line.slow(0))
            await asyncio.sleep(rng.uniform(0.0, 0.1))
            _cancel(s, streams)
            await asyncio.sleep(rng.uniform(0.0, 0.02))
        case _:
            raise ValueError(kind)


def _cancel(s: SessionDouble, streams: list[Stream]) -> None:
    for stream in streams:
        s.cancel(stream)


async def ended(s: SessionDouble, stream: Stream) -> BatonError | None:
    """Wait for the end of one attempt: None when it came to its own."""
    async with asyncio.timeout(60.0):
        await asyncio.wait((stream.ended, s.ended), return_when=asyncio.FIRST_COMPLETED)
    if not stream.ended.done():
        return DecodeLost(s.ended.result())
    try:
        await stream.finished()
    except BatonError as error:
        return error
    return None


@pytest.mark.parametrize("number", range(FAULTS))
@pytest.mark.parametrize("transport", KINDS)
async def test_a_fault_in_mid_hand_off(
    transport: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"{transport} {number}")
    kind = KINDS[transport][number % len(KINDS[transport])]
    asked = [
        generation(prompt(rng.randrange(80, 120), 100 * i), request_id=str(i)) for i in range(3)
    ]
    async with (
        stand(transport, kind, rng, monkeypatch) as st,
        session(st.workers.decode[0]) as s,
        session(st.workers.decode[1]) as other,
    ):
        prefill, decode = st.workers.prefill[0], st.workers.decode[0]
        streams = [s.submit(each, prefill) for each in asked]
        with ExitStack() as lasting:
            await strike(kind, s, streams, st, lasting, rng)
            barrier = asyncio.Barrier(3)
            canaries = [
                asyncio.create_task(canary(decode, barrier, Role.DECODE)),
                asyncio.create_task(canary(prefill, barrier, Role.PREFILL)),
            ]
            cancelled = kind.startswith("cancel")
            errors = [] if cancelled else [await ended(s, stream) for stream in streams]
            await barrier.wait()
        await asyncio.gather(*canaries)
        assert st.tampering is None or st.tampering.struck

        for stream, error in zip(streams, errors, strict=not cancelled):
            tokens = stream.token_ids
            if error is not None:
                assert isinstance(error, LOST), error
                again = replace(
                    stream.asked,
                    key=replace(stream.asked.key, attempt=1),
                    generated_ids=tuple(tokens),
                )
                tokens = tokens + await other.submit(again).finished()
            assert tokens == expected(stream.asked)
        if not kind.startswith("kill"):
            after = generation(prompt(90, 400), request_id="after")
            assert await s.submit(after, prefill).finished() == expected(after)
