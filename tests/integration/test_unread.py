"""KV that nobody reads: its stream ends with the Prefill call all the same, soon and for good."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from structlog.testing import capture_logs

from baton import wire
from baton.identity import CompatibilityClass
from baton.settings import MAX_STRIPES
from baton.v1 import kv_pb2, prefill_pb2
from tests.fakes import FakeWorker, eventually
from tests.relays import Caller, FakePrefill, calling, relay
from tests.workers import Worker, cluster, gateway_identity, generation, prompt

#: A layer of a prompt is more than a connection takes that nobody reads.
BIG = CompatibilityClass("mock", layers=3, kv_heads=8, head_size=128, block_size=4)


async def accepted(caller: Caller, worker: Worker, request_id: str = "r") -> tuple[object, bytes]:
    """A Prefill call under way at ``worker``, and the token of its KV."""
    identity = gateway_identity(compatibility=BIG)
    start = prefill_pb2.PrefillStart(
        identity=wire.identity_to_wire(identity),
        generation=wire.generation_to_wire(generation(prompt(400), request_id=request_id)),
        transports=[kv_pb2.TransportOffer(name="grpc", version=1)],
    )
    call = await caller.start(start, None)
    return call, (await call.read()).accepted.kv_token


async def stuck() -> None:
    """Until a write to somebody has been under way for a while."""
    writing = set[asyncio.Task[object]]()
    while not writing & asyncio.all_tasks():
        writing = {task for task in asyncio.all_tasks() if task.get_name() == "grpc write"}
        await asyncio.sleep(0.3)


async def test_a_prefill_worker_lets_go_of_it() -> None:
    async with cluster(decode=0, layout=BIG, num_blocks=256) as c:
        worker = c.prefill[0]
        with capture_logs() as logs:
            async with calling(worker.address) as control, calling(worker.address) as kv:
                call, token = await accepted(control, worker)
                reading = kv.read(token)
                await asyncio.wait_for(stuck(), 30)
                call.cancel()  # type: ignore[attr-defined]
                await eventually(reading.done)
                await c.settle_wholly()
                assert await reading.code() is grpc.StatusCode.UNAVAILABLE
                call, token = await accepted(control, worker, "again")
                assert token, "calls on the other connection go on"
        assert [line["disconnected"] for line in logs if "does not read" in line["event"]] == [True]


async def test_a_relay_lets_go_of_it() -> None:
    async with (
        FakePrefill(frames=[bytes(2**20)] * 64) as p,
        FakeWorker() as d,
        relay([p.address], [d.address]) as r,
        calling(r.address) as control,
        calling(r.address) as kv,
    ):
        call = await control.prefill(d.instance_id, p.instance_id)
        await call.read()
        reading = kv.read(p.token)
        await asyncio.wait_for(stuck(), 30)
        call.cancel()
        await eventually(reading.done)
        await eventually(lambda: not r.relay.reads and not p.reads)


async def test_a_stripe_is_read_once_and_there_are_few() -> None:
    async with (
        cluster(decode=0, layout=BIG, num_blocks=256) as c,
        calling(c.prefill[0].address) as caller,
    ):
        call, token = await accepted(caller, c.prefill[0])
        caller.read(token)
        await eventually(lambda: c.prefill[0].runtime.census.calls == 2)
        for stripes, says in ((1, "taken are"), (MAX_STRIPES + 1, f"at most {MAX_STRIPES}")):
            with pytest.raises(grpc.aio.AioRpcError, match=says) as refused:
                await caller.read(token, stripes).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        call.cancel()  # type: ignore[attr-defined]


async def test_a_relay_forwards_a_stripe_once() -> None:
    async with (
        FakePrefill(frames=[b""]) as p,
        FakeWorker() as d,
        relay([p.address], [d.address]) as r,
        calling(r.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        assert [frame async for frame in caller.read(p.token)] == [kv_pb2.KvFrame()]
        with pytest.raises(grpc.aio.AioRpcError, match="stripe 0 cannot be read"):
            await caller.read(p.token).read()
        assert p.sent == 1
