"""Sessions and Prefill calls as such: their handshakes, their ends, and who outlives whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from baton import channels, wire
from baton.errors import (
    BatonError,
    ContextLengthExceeded,
    DecodeSilent,
    Draining,
    IncompatiblePeer,
    InvalidRequest,
    PrefillDraining,
    PrefillLost,
    PrefillSilent,
    RequestError,
    UnsupportedParameter,
)
from baton.identity import PROTOCOL, Identity, new_instance_id
from baton.liveness import Liveness
from baton.v1 import decode_pb2, kv_pb2, prefill_pb2, prefill_pb2_grpc
from model.engine.mock_runner import CostModel
from model.worker.process import drain
from tests.fakes import eventually
from tests.workers import (
    CONTEXT,
    LAYOUT,
    VOCAB,
    Worker,
    cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
)

SLOW = CostModel(step_s=0.05)
GRPC = kv_pb2.TransportOffer(name="grpc", version=1)


# -- a session ---------------------------------------------------------------------------------


async def test_hello_both_ways() -> None:
    async with cluster(prefill=0) as c, session(c.decode[0]) as s:
        assert await s.hello == c.decode[0].runtime.identity


@pytest.mark.parametrize("protocol", [0, 9])
async def test_a_protocol_version_that_is_not_spoken(protocol: int) -> None:
    identity = gateway_identity(protocol=protocol)
    async with cluster(prefill=0) as c, session(c.decode[0], identity=identity) as s:
        assert "FAILED_PRECONDITION" in await s.ended
        assert isinstance(s.error, IncompatiblePeer)
        assert f"version {protocol} there, 1 to 2 here" in s.error.message


async def test_closing_cancels_all_that_was_submitted() -> None:
    async with cluster(num_blocks=256, cost=SLOW) as c:
        async with session(c.decode[0]) as s:
            for i in range(6):
                asked = generation(prompt(40, i), request_id=str(i), max_tokens=100)
                s.submit(asked, c.prefill[0] if i % 2 else None)
            await asyncio.sleep(0.3)
        await c.settle()


async def test_a_silent_gateway_is_dead() -> None:
    async with cluster(cost=SLOW) as c, session(c.decode[0], beats=False) as s:
        s.submit(generation(prompt(40), max_tokens=150), c.prefill[0])
        await eventually(lambda: c.decode[0].runtime.engine.load().blocks.owned > 0)
        await c.settle()
        await s.ended
        assert isinstance(s.error, DecodeSilent)


async def test_a_gateway_that_does_not_read_loses_its_session() -> None:
    async with cluster(num_blocks=512, session_queue=20) as c, session(c.decode[0]) as s:
        await s.hello
        s.reading.clear()
        # gRPC buffers some 64 KiB of messages before the writer has to wait.
        tasks = [
            s.submit(generation(prompt(9, i), request_id=f"{i}" * 900, max_tokens=200))
            for i in range(8)
        ]
        # Not before they run: there is nothing to settle until then, and who reads loses nothing.
        await eventually(lambda: c.decode[0].runtime.engine.load().steps > 0)
        await c.settle(20)
        s.reading.set()
        async with asyncio.timeout(20):
            assert await s.ended  # with a status: what exactly depends on what gRPC had in hand
        assert not all(stream.ended.done() for stream in tasks)


async def test_what_is_submitted_twice_is_refused() -> None:
    async with cluster(prefill=0, cost=SLOW) as c, session(c.decode[0]) as s:
        s.submit(generation(prompt(20), max_tokens=100))
        await asyncio.sleep(0.1)
        error = await s.submit(generation(prompt(20), max_tokens=100)).failed()
        assert isinstance(error, RequestError) and "twice" in error.message


@pytest.mark.parametrize(
    ("length", "sampling", "error", "says"),
    [
        (0, {}, InvalidRequest, "no tokens"),
        (CONTEXT - 5, {"max_tokens": 6}, ContextLengthExceeded, f"{CONTEXT - 5}"),
        (250, {"max_tokens": CONTEXT}, ContextLengthExceeded, f"{CONTEXT + 250}"),
        (200, {"max_tokens": 100}, ContextLengthExceeded, "256"),  # over the pool
        (9, {"eos_ids": (VOCAB,)}, InvalidRequest, f"{VOCAB}"),
        (9, {"logit_bias": {VOCAB + 3: 1.0}}, InvalidRequest, f"{VOCAB + 3}"),
    ],
)
@pytest.mark.parametrize("local", [True, False])
async def test_what_can_never_be_served(
    local: bool, length: int, sampling: dict[str, Any], error: type[BatonError], says: str
) -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        asked = generation(prompt(length), **sampling)
        refused = await s.submit(asked, None if local else c.prefill[0]).failed()
        assert type(refused) is error
        assert says in refused.message and not refused.retryable


async def test_token_ids_outside_the_vocabulary() -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        for target in (None, c.prefill[0]):
            asked = generation((5, VOCAB, 7), request_id=str(target))
            refused = await s.submit(asked, target).failed()
            assert f"token id {VOCAB}" in refused.message


async def test_fields_of_later_versions_are_refused_not_ignored() -> None:
    async with cluster(prefill=0) as c, session(c.decode[0]) as s:
        stream = s.submit(generation(prompt(9)))
        submit = s.outgoing.get_nowait()  # not pulled yet: nothing was awaited
        assert submit is not None
        submit.submit.generation.sampling.grammar.SetInParent()
        s.outgoing.put_nowait(submit)
        assert isinstance(await stream.failed(), UnsupportedParameter)


async def test_draining_hands_back_what_runs() -> None:
    async with cluster(cost=SLOW) as c, session(c.decode[0]) as s:
        worker = c.decode[0]
        whole = generation(prompt(30), max_tokens=60)
        stream = s.submit(whole, c.prefill[0])
        await stream.progress.wait()
        assert await drain(worker.runtime, worker.server, 0.1) == 1
        error = await stream.failed()
        assert isinstance(error, Draining) and error.retryable
        assert stream.token_ids == expected(whole)[: len(stream.token_ids)]
        refused = await s.submit(generation(prompt(30), request_id="late")).failed()
        assert isinstance(refused, Draining)


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL])
async def test_a_draining_prefill_worker_is_named_as_its_gateway_knows_it(protocol: int) -> None:
    async with (
        cluster() as c,
        session(c.decode[0], identity=gateway_identity(protocol=protocol)) as s,
    ):
        await drain(c.prefill[0].runtime, c.prefill[0].server, 0.1)
        error = await s.submit(generation(prompt(30)), c.prefill[0]).failed()
        assert type(error) is (PrefillDraining if protocol == PROTOCOL else PrefillLost)
        assert c.prefill[0].address in error.message and error.retryable


async def test_preempted_sequences_go_back_and_on() -> None:
    """Two sequences that outgrow the pool: one gives way, and finishes as a replay."""
    asked = [generation(prompt(20, i), request_id=str(i), max_tokens=30) for i in range(2)]
    async with cluster(num_blocks=20) as c, session(c.decode[0]) as s:
        for stream in [s.submit(each, c.prefill[0]) for each in asked]:
            tokens: list[int] = []
            for attempt in range(1, 20):
                try:
                    tokens += await stream.finished()
                    break
                except BatonError as error:
                    assert error.retryable, error
                    tokens += stream.token_ids
                    key = replace(stream.asked.key, attempt=attempt)
                    again = replace(stream.asked, key=key, generated_ids=tuple(tokens))
                    await asyncio.sleep(0.05)
                    stream = s.submit(again, c.prefill[0])
            assert tokens == expected(stream.asked)


# -- a Prefill call --------------------------------------------------------------------------


@asynccontextmanager
async def prefill_call(worker: Worker) -> AsyncIterator[Any]:
    async with channels.connect(worker.address, shared=False) as channel:
        call = prefill_pb2_grpc.PrefillServiceStub(channel).Prefill()
        try:
            yield call
        finally:
            call.cancel()


def start(**changes: Any) -> prefill_pb2.PrefillRequest:
    identity = Identity(new_instance_id(), LAYOUT)
    fields = {
        "identity": wire.identity_to_wire(identity),
        "generation": wire.generation_to_wire(generation(prompt(40))),
        "transports": [GRPC],
    }
    return prefill_pb2.PrefillRequest(start=prefill_pb2.PrefillStart(**fields | changes))


async def refusal(call: Any) -> BatonError:
    """The error that a call ends with."""
    async with asyncio.timeout(30):
        while (event := await call.read()) is not grpc.aio.EOF:
            if event.WhichOneof("message") == "error":
                return wire.error_from_wire(event.error)
    raise AssertionError("no error was said")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"from_token": 3}, RequestError, "token 3"),
        ({"from_token": 44}, RequestError, "token 44, but the prompt has 40"),
        (
            {"transports": []},
            IncompatiblePeer,
            "the decode worker reads none, the prefill worker has shm 2, grpc 1, relay 1",
        ),
        (
            {"transports": [kv_pb2.TransportOffer(name="grpc", version=7)]},
            IncompatiblePeer,
            "grpc: version 7 of the decode worker, 1 of the prefill worker",
        ),
        (
            {"identity": wire.identity_to_wire(Identity("x", LAYOUT, protocol=0))},
            IncompatiblePeer,
            "version 0 there",
        ),
        ({"identity": wire.identity_to_wire(gateway_identity())}, IncompatiblePeer, "no compat"),
    ],
)
async def test_a_prefill_call_that_cannot_be(
    changes: dict[str, Any], error: type[BatonError], says: str
) -> None:
    async with cluster(decode=0) as c, prefill_call(c.prefill[0]) as call:
        await call.write(start(**changes))
        refused = await refusal(call)
        assert isinstance(refused, error) and says in refused.message


async def test_better_transports_are_passed_over_with_a_reason() -> None:
    offers = [kv_pb2.TransportOffer(name="nixl", version=1), GRPC]
    async with cluster(decode=0) as c, prefill_call(c.prefill[0]) as call:
        await call.write(start(transports=offers))
        accepted = (await call.read()).accepted
        assert accepted.transport.name == "grpc"
        assert list(accepted.transport.downgrades) == ["nixl: the prefill worker does not have it"]
        assert len(accepted.kv_token) == 16


async def test_a_silent_decode_worker_is_dead() -> None:
    async with cluster(decode=0) as c, prefill_call(c.prefill[0]) as call:
        await call.write(start())
        await call.read()
        assert c.prefill[0].runtime.engine.load().blocks.owned
        await c.settle()
        with pytest.raises(grpc.aio.AioRpcError, match="nothing heard"):
            while await call.read() is not grpc.aio.EOF:
                pass


async def test_a_call_that_is_never_started_ends() -> None:
    async with cluster(decode=0) as c, prefill_call(c.prefill[0]) as call:
        assert isinstance(await refusal(call), RequestError)


async def test_a_kv_token_is_good_once_and_while_the_call_lives() -> None:
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        read = channel.unary_stream(
            "/baton.v1.KvService/Read",
            request_serializer=kv_pb2.KvReadRequest.SerializeToString,
            response_deserializer=kv_pb2.KvFrame.FromString,  # ordinary protobuf on the wire
        )
        async with prefill_call(c.prefill[0]) as call:
            await call.write(start())
            token = (await call.read()).accepted.kv_token
            request = kv_pb2.KvReadRequest(kv_token=token, stripe=0, stripes=1)
            frames = [frame async for frame in read(request)]
            assert {frame.layer for frame in frames} == {0, 1, 2}
            assert sum(len(frame.payload) for frame in frames) == 3 * 10 * LAYOUT.block_bytes
            assert await _code(read(request)) is grpc.StatusCode.INVALID_ARGUMENT
        await c.settle()
        assert await _code(read(request)) is grpc.StatusCode.NOT_FOUND
        guess = kv_pb2.KvReadRequest(kv_token=b"0" * 16, stripe=0, stripes=1)
        assert await _code(read(guess)) is grpc.StatusCode.NOT_FOUND


async def test_stripes_share_a_hand_off() -> None:
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        read = channel.unary_stream(
            "/baton.v1.KvService/Read",
            request_serializer=kv_pb2.KvReadRequest.SerializeToString,
            response_deserializer=kv_pb2.KvFrame.FromString,
        )
        async with prefill_call(c.prefill[0]) as call:
            await call.write(start())
            token = (await call.read()).accepted.kv_token
            for stripe in range(2):
                request = kv_pb2.KvReadRequest(kv_token=token, stripe=stripe, stripes=2)
                layers = {frame.layer async for frame in read(request)}
                assert layers == {layer for layer in range(3) if layer % 2 == stripe}
            for stripes in (0, 3):
                odd = kv_pb2.KvReadRequest(kv_token=token, stripe=0, stripes=stripes)
                assert await _code(read(odd)) is grpc.StatusCode.INVALID_ARGUMENT


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    code: grpc.StatusCode = await call.code()
    return code


class SilentPrefill(prefill_pb2_grpc.PrefillServiceServicer):
    """Takes calls and never says a word, as a stopped process would."""

    async def Prefill(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await asyncio.Event().wait()


@pytest.mark.parametrize(("steady", "kind"), [(True, PrefillSilent), (False, PrefillLost)])
async def test_a_silent_prefill_worker_is_lost(
    steady: bool, kind: type[PrefillLost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless this worker was stopped itself, nobody else need try that one."""
    monkeypatch.setattr(Liveness, "steady", steady)
    server = channels.server()
    prefill_pb2_grpc.add_PrefillServiceServicer_to_server(SilentPrefill(), server)
    port = channels.bind(server, "127.0.0.1", 0)
    await server.start()
    async with cluster(prefill=0) as c, session(c.decode[0]) as s:
        stream = s.submit(generation(prompt(20)))
        submit = s.outgoing.get_nowait()
        assert submit is not None
        target = decode_pb2.PrefillTarget(address=f"127.0.0.1:{port}", instance_id="i")
        submit.submit.prefill.CopyFrom(target)
        s.outgoing.put_nowait(submit)
        error = await stream.failed()
        assert type(error) is kind and "nothing heard" in error.message
    await server.stop(0)
