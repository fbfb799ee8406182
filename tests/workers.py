"""Workers in this process, on mock runners, over real gRPC; and the gateway's side of a session.

    async with cluster(prefill=1, decode=2) as c, session(c.decode[0]) as s:
        stream = s.submit(generation(prompt), c.prefill[0])
        assert await stream.finished() == expected(prompt)

Leaving ``cluster`` demands that every worker's books balance and nothing is left of anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from baton import channels, wire
from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import BatonError
from baton.generation import AttemptKey, FinishReason, Generation, Timings, TokenLogprobs
from baton.identity import CompatibilityClass, Identity, new_instance_id
from baton.sampling import SamplingSpec
from baton.settings import DecodeSettings, PrefillSettings, WorkerSettings
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party
from baton.v1 import (
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    kv_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from decode_worker.role import decode_role
from model.engine.mock_runner import CostModel, MockRunner, expected_tokens
from model.engine.settings import SchedulerSettings
from model.worker.census import Census
from model.worker.loading import LoadedModel
from model.worker.process import Services, worker
from model.worker.runtime import Runtime
from model.worker.server import Server
from model.worker.service import check
from prefill_worker.role import prefill_role
from tests.tls import Fleet

BLOCK = 4
VOCAB = 512
CONTEXT = 512
LAYOUT = CompatibilityClass("mock", layers=3, kv_heads=2, head_size=4, block_size=BLOCK)
#: Brisk, so that silence is noticed within a test; patient enough for a busy machine.
BEAT = {"heartbeat_interval": 0.3, "heartbeats_missed": 3}
#: Of workers and of a gateway before them, where nobody is to be missed: each beats well within the
#: other's patience.
CALM, CALM_GATEWAY = {"heartbeat_interval": 0.8}, {"heartbeat_interval": 1.0}


@dataclass(slots=True)
class Worker:
    """One worker of a cluster."""

    runtime: Runtime
    server: Server
    _stop: AsyncExitStack

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def instance_id(self) -> str:
        return self.runtime.identity.instance_id

    async def kill(self) -> None:
        """End its server at once: every call on it breaks."""
        await self.server.stop(0)


@dataclass(slots=True)
class Cluster:
    """Workers by role, and what they are all made with."""

    layout: CompatibilityClass
    prefill: list[Worker] = field(default_factory=list)
    decode: list[Worker] = field(default_factory=list)

    @property
    def workers(self) -> list[Worker]:
        return [*self.prefill, *self.decode]

    async def settle(self, seconds: float = 20.0) -> None:
        """Wait until no worker has KV or calls in use. Fails with every violation otherwise."""
        await self._until_clean(self._books, seconds)

    async def settle_wholly(self, seconds: float = 20.0) -> None:
        """As ``settle``, tasks and descriptors of the process included: ours must be closed."""
        await self._until_clean(
            lambda: [line for w in self.workers for line in check(w.runtime, idle=True)], seconds
        )

    def _books(self) -> list[str]:
        wrong = [line for w in self.workers for line in w.runtime.engine.check_integrity(True)]
        calls = sum(w.runtime.census.calls for w in self.workers)
        return [*wrong, f"{calls} calls are open"] if calls else wrong

    async def _until_clean(self, violations: Callable[[], list[str]], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while wrong := violations():
            assert time.monotonic() < deadline, (wrong, asyncio.all_tasks())
            await asyncio.sleep(0.02)


@asynccontextmanager
async def cluster(
    prefill: int = 1,
    decode: int = 1,
    *,
    num_blocks: int = 64,
    layout: CompatibilityClass = LAYOUT,
    cost: CostModel | None = None,
    sleep: Callable[[float], None] = time.sleep,
    make_runner: Callable[..., MockRunner] = MockRunner,
    kv_address: str = "",
    max_running: int = 16,
    chunk_tokens: int = 16,
    tls: Fleet | None = None,
    **settings: Any,
) -> AsyncIterator[Cluster]:
    """So many workers of each role: p0, p1, ... and d0, d1, ... in certificates. ``settings`` go to
    those who know them."""
    census = Census()

    async def start(stack: AsyncExitStack, settings: WorkerSettings, role: Services) -> Worker:
        runner = make_runner(layout, num_blocks, cost=cost, sleep=sleep)
        limits = SchedulerSettings(
            block_size=layout.block_size,
            max_model_len=CONTEXT,
            max_tokens_per_step=64,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
            prefill_order=settings.prefill_order,
            itl_target_s=settings.itl_target_s,
            keep_blocks=settings.prefill_blocks(num_blocks),
        )
        own = await stack.enter_async_context(AsyncExitStack())
        server = Server("127.0.0.1", 0, Links.of(settings))
        await server.start()
        own.push_async_callback(server.stop, 0)
        loaded = LoadedModel(runner, VOCAB, limits)
        context = worker(loaded, settings, role, server, census)
        return Worker(await own.enter_async_context(context), server, own)

    # What stands between the workers and tampers is a gRPC relay.
    relayed = {"kv_transports": ["grpc"]} if kv_address else {}
    common = {"model": "mock"} | BEAT | relayed | settings
    decoding = DecodeSettings.model_fields.keys() - PrefillSettings.model_fields.keys()

    def own(id: str, party: Party) -> dict[str, Any]:
        return common | (tls.settings(id, party) if tls else {})

    async with AsyncExitStack() as stack:
        made = Cluster(layout)
        for number in range(prefill):
            given = own(f"p{number}", Party.PREFILL)
            known = {k: v for k, v in given.items() if k not in decoding}
            made.prefill.append(
                await start(stack, PrefillSettings(**known), prefill_role(kv_address))
            )
        for number in range(decode):
            decode_settings = DecodeSettings(**own(f"d{number}", Party.DECODE))
            made.decode.append(await start(stack, decode_settings, decode_role(decode_settings)))
        yield made
        await made.settle_wholly()


async def status(worker: Worker, links: Links = PLAIN) -> worker_pb2.WorkerStatus:
    """What it says first to whoever watches."""
    request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity()))
    async with links.connect(worker.address, Party.WORKER, shared=False) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        said: worker_pb2.WorkerStatus = await call.read()
        call.cancel()
        return said


# -- what is asked ---------------------------------------------------------------------------


def prompt(length: int, first: int = 100) -> tuple[int, ...]:
    """A prompt of so many ids; another ``first`` shares no prefix with it."""
    return tuple((first + 7 * i) % VOCAB for i in range(length))


def generation(
    prompt_ids: Sequence[int],
    *,
    request_id: str = "r",
    attempt: int = 0,
    generated: Sequence[int] = (),
    max_tokens: int = 8,
    deadlines: Deadlines = UNLIMITED,
    choices: Sequence[int] = (0,),
    **sampling: Any,
) -> Generation:
    spec = SamplingSpec(**({"temperature": 0.0, "max_tokens": max_tokens} | sampling))
    key = AttemptKey(request_id, attempt, choices[0])
    return Generation(
        key, tuple(prompt_ids), tuple(generated), spec, deadlines, more_choices=tuple(choices[1:])
    )


def expected(asked: Generation, layout: CompatibilityClass = LAYOUT) -> list[int]:
    """Every id that must come out of all attempts together."""
    return expected_tokens(
        asked.prompt_ids, asked.sampling, layout, choice_index=asked.key.choice_index
    )


# -- the gateway's side ----------------------------------------------------------------------


class Stream:
    """What came of one submit, for one of its choices."""

    def __init__(self, asked: Generation) -> None:
        self.asked = asked
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.cached_tokens: int | None = None
        self.progress = asyncio.Event()  #: set by the first token
        self.ended: asyncio.Future[decode_pb2.Ended] = asyncio.get_running_loop().create_future()

    async def finished(self, seconds: float = 60.0) -> list[int]:
        """The tokens of this attempt. Raises the BatonError that ended it early."""
        async with asyncio.timeout(seconds):
            ended = await self.ended
        if ended.HasField("error"):
            raise wire.error_from_wire(ended.error)
        return self.token_ids

    async def failed(self, seconds: float = 20.0) -> BatonError:
        """The error that ends it; fails when it finishes."""
        try:
            tokens = await self.finished(seconds)
        except BatonError as error:
            assert self.ended.result().error.retryable == error.retryable
            return error
        raise AssertionError(f"finished with {len(tokens)} tokens")

    @property
    def reason(self) -> FinishReason:
        return wire.finish_from_wire(self.ended.result().finish_reason)

    @property
    def timings(self) -> Timings:
        return wire.timings_from_wire(self.ended.result().timings)

    def take(self, delta: decode_pb2.TokenDelta) -> None:
        expected_index = len(self.asked.generated_ids) + len(self.token_ids)
        assert delta.token_index == expected_index, "tokens lost or repeated"
        assert delta.HasField("cached_tokens") == (not self.token_ids)
        if not self.token_ids:
            self.cached_tokens = delta.cached_tokens
        self.token_ids += delta.token_ids
        self.logprobs += wire.logprobs_from_wire(delta.logprobs)
        self.progress.set()


class SessionDouble:
    """Submits and cancels by hand; keeps what comes back."""

    def __init__(self) -> None:
        self.streams: dict[AttemptKey, Stream] = {}
        self.error: BatonError | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.hello: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
        self.outgoing: asyncio.Queue[decode_pb2.SessionRequest | None] = asyncio.Queue()
        self.reading = asyncio.Event()  #: cleared: leaves what comes unread
        self.reading.set()

    def submit(
        self,
        asked: Generation,
        prefill: Worker | None = None,
        *,
        instance_id: str = "",
        address: str = "",
        **known: float,
    ) -> Stream:
        """``instance_id`` and ``address``: said of the prefill worker in place of its own.
        ``known``: what else the gateway says of it (PrefillTarget). Returns what comes of the
        first choice; the others are in ``streams``."""
        self.streams |= {part.key: Stream(part) for part in asked.apart}
        submit = decode_pb2.Submit(generation=wire.generation_to_wire(asked))
        if prefill is not None:
            target = decode_pb2.PrefillTarget(
                address=address or prefill.address,
                instance_id=instance_id or prefill.instance_id,
                **known,
            )
            submit.prefill.CopyFrom(target)
        self.outgoing.put_nowait(decode_pb2.SessionRequest(submit=submit))
        return self.streams[asked.key]

    def cancel(self, stream: Stream) -> None:
        key = stream.asked.key
        cancel = decode_pb2.Cancel(
            request_id=key.request_id, attempt=key.attempt, choice_index=key.choice_index
        )
        self.outgoing.put_nowait(decode_pb2.SessionRequest(cancel=cancel))

    async def read(self, call: Any) -> None:
        while True:
            await self.reading.wait()
            try:
                event = await call.read()
            except grpc.aio.AioRpcError as error:
                self.ended.set_result(f"{error.code().name}: {error.details()}")
                return
            if event is grpc.aio.EOF:
                self.ended.set_result("")
                return
            match event.WhichOneof("message"):
                case "hello":
                    self.hello.set_result(wire.identity_from_wire(event.hello))
                case "error":
                    self.error = wire.error_from_wire(event.error)
                case "step":
                    self._deliver(event.step)

    def _deliver(self, step: decode_pb2.StepOutput) -> None:
        for delta in step.tokens:
            self.streams[_key(delta)].take(delta)
        for ended in step.ended:
            self.streams[_key(ended)].ended.set_result(ended)


def _key(message: decode_pb2.TokenDelta | decode_pb2.Ended) -> AttemptKey:
    return AttemptKey(message.request_id, message.attempt, message.choice_index)


def gateway_identity(**changes: Any) -> Identity:
    return replace(Identity(new_instance_id(), None), **changes)


@asynccontextmanager
async def session(
    decode: Worker,
    *,
    beats: bool = True,
    identity: Identity | None = None,
    links: Links = PLAIN,
) -> AsyncIterator[SessionDouble]:
    """A session with a decode worker; without ``beats`` it gives no signs of life."""
    double = SessionDouble()
    hello = wire.identity_to_wire(identity or gateway_identity())

    async def requests() -> AsyncIterator[decode_pb2.SessionRequest]:
        yield decode_pb2.SessionRequest(hello=hello)
        while (request := await double.outgoing.get()) is not None:
            yield request

    async def beat() -> None:
        sequence = 0
        while beats:
            sequence += 1
            message = common_pb2.Heartbeat(sequence=sequence)
            double.outgoing.put_nowait(decode_pb2.SessionRequest(heartbeat=message))
            await asyncio.sleep(BEAT["heartbeat_interval"])

    # The window: what one who does not read is sent all the same.
    async with links.connect(decode.address, Party.DECODE, shared=False, window=2**16) as channel:
        call = decode_pb2_grpc.DecodeServiceStub(channel).Session(requests())
        tasks = [asyncio.create_task(double.read(call)), asyncio.create_task(beat())]
        try:
            yield double
        finally:
            double.outgoing.put_nowait(None)  # or gRPC's own task may wait there for ever
            call.cancel()
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, AssertionError):
                    raise outcome


# -- between the workers ---------------------------------------------------------------------

#: Passes the frames of one reading on, or not.
Tamper = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]


@asynccontextmanager
async def kv_relay(
    tamper: Tamper, source: Callable[[], str], peers: list[str] | None = None
) -> AsyncIterator[str]:
    """Stands between readers and the KV service at ``source()``; yields its own address.

    ``peers`` gets the other end of each reading's connection.
    """

    async def read(request: kv_pb2.KvReadRequest, context: Any) -> AsyncIterator[bytes]:
        if peers is not None:
            peers.append(context.peer())
        async with channels.connect(source(), shared=False) as channel:
            method = channel.unary_stream(
                "/baton.v1.KvService/Read",
                request_serializer=kv_pb2.KvReadRequest.SerializeToString,
                response_deserializer=None,
            )
            async for frame in tamper(aiter(method(request))):
                yield frame

    handler = grpc.unary_stream_rpc_method_handler(
        read, request_deserializer=kv_pb2.KvReadRequest.FromString
    )
    server = channels.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("baton.v1.KvService", {"Read": handler}),)
    )
    port = channels.bind(server, "127.0.0.1", 0)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
