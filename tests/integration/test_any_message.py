"""Whatever is sent to whichever RPC: an answer or a known status, in time, and nothing stays.

Random messages, good ones bent a little, and plain bytes, to the real services in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from baton import channels, wire
from baton.errors import TABLE
from baton.identity import Identity, new_instance_id
from baton.kv.relay import TARGET
from baton.v1 import (
    common_pb2,
    decode_pb2,
    kv_pb2,
    membership_pb2,
    prefill_pb2,
    worker_pb2,
)
from tests.fakes import write_checkpoint
from tests.gateways import serving
from tests.protobufs import bent, messages
from tests.relays import relayed
from tests.workers import (
    LAYOUT,
    Cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
)

T = TypeVar("T")
#: Seconds that any exchange may take on a busy machine; none waits for so long by itself.
PATIENCE = 30.0
#: Seconds for which a stream is left open, so that what was asked for begins.
OPEN = 0.02
STATUSES = {grpc.StatusCode.OK, *(grpc.StatusCode[e.grpc_status] for e in TABLE.values())}


@dataclass
class Fleet:
    """Everything that serves, on a loop of a thread of its own: hypothesis does not await."""

    loop: asyncio.AbstractEventLoop
    workers: Cluster
    relay: str
    gateway: str
    #: Where each service of these is asked; the relay has methods of the prefill worker.
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE + 10)

    def channel(self, service: str) -> grpc.aio.Channel:
        if service not in self.channels:
            address = {
                "PrefillService": self.workers.prefill[0].address,
                "KvService": self.workers.prefill[0].address,
                "DecodeService": self.workers.decode[0].address,
                # Told to leave, or to do something else: nobody else works with that one.
                "WorkerService": self.workers.decode[1].address,
                "MembershipService": self.gateway,
                "relay": self.relay,
            }[service]
            self.channels[service] = channels.connect(address, shared=False)
        return self.channels[service]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("toy"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fleet")
    thread.start()
    stack = AsyncExitStack()

    async def start() -> Fleet:
        c, r = await stack.enter_async_context(relayed(decode=2, kv_transports=["grpc"]))
        g = await stack.enter_async_context(serving(checkpoint, [], membership="embedded"))
        return Fleet(loop, c, r.address, g.service.rpc)

    def run(work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(seconds)

    async def stop(running: Fleet) -> None:
        await asyncio.gather(*(channel.close() for channel in running.channels.values()))
        await running.workers.settle(PATIENCE)
        await still_serves(running)
        await stack.aclose()

    try:
        running = run(start(), 60)
        yield running
        run(stop(running), 90)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def still_serves(running: Fleet) -> None:
    """Exactly, with KV handed over."""
    async with session(running.workers.decode[0]) as s:
        asked = generation(prompt(40, 3), request_id="good", max_tokens=5)
        stream = s.submit(asked, running.workers.prefill[0])
        assert await stream.finished() == expected(asked)


# -- what is sent ----------------------------------------------------------------------------


def good() -> dict[str, list[Message]]:
    """By method, messages of a call that would be served."""
    worker = wire.identity_to_wire(Identity(new_instance_id(), LAYOUT))
    gateway = wire.identity_to_wire(gateway_identity())
    asked = wire.generation_to_wire(generation(prompt(20), max_tokens=3))
    start = prefill_pb2.PrefillStart(
        identity=worker,
        generation=asked,
        transports=[kv_pb2.TransportOffer(name="grpc", version=1)],
    )
    prefill: list[Message] = [
        prefill_pb2.PrefillRequest(start=start),
        prefill_pb2.PrefillRequest(heartbeat=common_pb2.Heartbeat(sequence=1)),
    ]
    read: list[Message] = [kv_pb2.KvReadRequest(kv_token=b"0" * 16, stripes=1)]
    entry = membership_pb2.Entry(
        address="127.0.0.1:1", identity=worker, roles=[worker_pb2.ROLE_DECODE]
    )
    return {
        "PrefillService/Prefill": prefill,
        "KvService/Read": read,
        "relay/Prefill": prefill,
        "relay/Read": read,
        "DecodeService/Session": [
            decode_pb2.SessionRequest(hello=gateway),
            decode_pb2.SessionRequest(submit=decode_pb2.Submit(generation=asked)),
            decode_pb2.SessionRequest(cancel=decode_pb2.Cancel(request_id="r")),
        ],
        "WorkerService/Watch": [worker_pb2.WatchRequest(identity=gateway, cache_changes=True)],
        "WorkerService/CheckIntegrity": [worker_pb2.CheckIntegrityRequest()],
        "WorkerService/SetRoles": [
            worker_pb2.SetRolesRequest(roles=[worker_pb2.ROLE_PREFILL], grace_ms=0)
        ],
        "WorkerService/Drain": [worker_pb2.DrainRequest()],
        "MembershipService/Join": [membership_pb2.JoinRequest(entry=entry)],
        "MembershipService/Leave": [membership_pb2.LeaveRequest(address=entry.address)],
        "MembershipService/List": [membership_pb2.ListRequest()],
        "MembershipService/Discover": [membership_pb2.DiscoverRequest(identity=gateway)],
    }


GOOD = good()
FILES = (decode_pb2, kv_pb2, membership_pb2, prefill_pb2, worker_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_is_among_them() -> None:
    served = {name for name in GOOD if not name.startswith("relay/")}
    assert served == METHODS.keys()


def method_of(name: str) -> MethodDescriptor:
    where, method = name.split("/")
    return METHODS[
        {"relay/Prefill": "PrefillService/Prefill", "relay/Read": "KvService/Read"}.get(
            name, f"{where}/{method}"
        )
    ]


def sent(name: str) -> st.SearchStrategy[list[bytes]]:
    """What a client sends, as bytes: one message, or those of a stream."""
    usual = GOOD[name]
    kind = type(usual[0])
    anything = messages(kind).map(_as_bytes) | st.binary(max_size=60) | _cut(usual[0])
    one = bent(usual[0]).map(_as_bytes) | anything
    if not method_of(name).client_streaming:
        return one.map(lambda message: [message])
    # What breaks the contract ends the stream: mostly it comes last.
    begins = st.just(_as_bytes(usual[0])) | one
    later = st.lists(st.sampled_from(usual[1:]).flatmap(bent).map(_as_bytes), max_size=4)
    last = st.lists(anything, max_size=1)
    return st.builds(lambda head, *rest: [head, *itertools.chain(*rest)], begins, later, last)


def _as_bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _cut(message: Message) -> st.SearchStrategy[bytes]:
    """The beginning of a good message, and something else after it."""
    whole = _as_bytes(message)
    return st.builds(
        lambda n, tail: whole[:n] + tail, st.integers(0, len(whole)), st.binary(max_size=9)
    )


# -- what comes back -------------------------------------------------------------------------


async def exchange(running: Fleet, name: str, requests: Sequence[bytes]) -> list[bytes]:
    """The answers, of a stream without end the first ones. Raises AioRpcError, TimeoutError."""
    where = name.partition("/")[0]
    method = method_of(name)
    channel, path = running.channel(where), f"/{method.containing_service.full_name}/{method.name}"
    async with asyncio.timeout(PATIENCE):
        if not method.server_streaming:
            return [await channel.unary_unary(path)(requests[0])]
        if not method.client_streaming:
            call: Any = channel.unary_stream(path)(requests[0])
        else:
            target = running.workers.prefill[0].instance_id
            metadata = ((TARGET, target),) if where == "relay" else ()
            call = channel.stream_stream(path)(_leisurely(requests), metadata=metadata)
        answers = list[bytes]()
        try:
            async for answer in call:
                answers.append(answer)
                if len(answers) == 20 or not method.client_streaming:
                    return answers
        finally:
            call.cancel()
        return answers


async def _leisurely(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request
    await asyncio.sleep(OPEN)


def codes(answer: Message) -> Iterator[str]:
    """Of every Error in it."""
    for descriptor, value in answer.ListFields():
        for each in value if descriptor.is_repeated else [value]:
            if isinstance(each, common_pb2.Error):
                yield each.code
            elif isinstance(each, Message):
                yield from codes(each)


def send(running: Fleet, name: str, requests: Sequence[bytes]) -> None:
    """Whatever becomes of it is in the error table, and no defect of ours."""
    method = method_of(name)
    try:
        answers = running.run(exchange(running, name, requests))
    except grpc.aio.AioRpcError as error:
        code, details = error.code(), error.details() or ""
        if details == "Internal error from Core":
            return  # grpc.aio says so of a write that came after the end, in place of the status
        unread = code is grpc.StatusCode.UNKNOWN and "DecodeError" in details
        assert code in STATUSES or (unread and method.client_streaming)
        assert code is not grpc.StatusCode.INTERNAL, details
    else:
        kind = GetMessageClass(method.output_type)
        if method.full_name != "baton.v1.KvService.Read":  # whose frames are ours to encode
            said = {code for answer in answers for code in codes(kind.FromString(answer))}
            assert said <= TABLE.keys() - {"internal_error"}, said


def _fuzz(running: Fleet, name: str, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(sent(name))
    def one(requests: list[bytes]) -> None:
        send(running, name, requests)

    with capture_logs() as logs:
        one()
    assert not [line for line in logs if "exc_info" in line]


@pytest.mark.parametrize("name", GOOD)
def test_any_message(fleet: Fleet, name: str) -> None:
    _fuzz(fleet, name, 100)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", GOOD)
def test_a_great_many_messages(fleet: Fleet, name: str) -> None:
    _fuzz(fleet, name, 2000)
