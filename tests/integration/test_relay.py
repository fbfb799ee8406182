"""Prefill calls and KV through a relay: the tokens are those of one process, only registered
workers are let through, and either end's end is the other's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from baton import wire
from baton.cli import ports
from baton.errors import BatonError, IncompatiblePeer, PrefillLost, RelayRefused, RequestError
from baton.v1 import kv_pb2, prefill_pb2
from model.engine.mock_runner import CostModel
from tests.fakes import FakeWorker, eventually
from tests.relays import NOWHERE, FakePrefill, calling, relay, relayed
from tests.workers import LAYOUT, cluster, expected, generation, prompt, session

SLOW = CostModel(step_s=0.03)
FORCED = {"kv_transports": ["relay"]}


def chosen(logs: list[Any]) -> list[tuple[str, list[str]]]:
    return [(line["name"], line["passed_over"]) for line in logs if line["event"] == "kv transport"]


# -- whole requests --------------------------------------------------------------------------


async def test_forced_through_the_relay() -> None:
    asked = [generation(prompt(1 + 9 * i, i), request_id=str(i)) for i in range(8)]
    with capture_logs() as logs:
        async with relayed(num_blocks=512, **FORCED) as (c, r), session(c.decode[0]) as s:
            streams = [s.submit(each, c.prefill[0]) for each in asked]
            for stream in streams:
                assert await stream.finished() == expected(stream.asked)
            assert r.metrics.registry.get_sample_value("baton_relay_calls_total") == len(asked)
            assert (r.metrics.registry.get_sample_value("baton_relay_kv_bytes_total") or 0) > sum(
                stream.timings.transfer_bytes for stream in streams
            )
    assert chosen(logs) == [("relay", [])]


async def test_a_prefill_worker_that_cannot_be_reached_and_one_that_can() -> None:
    asked = [generation(prompt(50 + i, i), request_id=str(i)) for i in range(3)]
    with capture_logs() as logs:
        async with (
            relayed(prefill=2, num_blocks=256, kv_transports=["grpc", "relay"]) as (c, r),
            session(c.decode[0]) as s,
        ):
            streams = [
                s.submit(asked[0], c.prefill[0], address=NOWHERE),
                s.submit(asked[1], c.prefill[0], address=NOWHERE),
                s.submit(asked[2], c.prefill[1]),
            ]
            for stream in streams:
                assert await stream.finished() == expected(stream.asked)
            assert r.metrics.registry.get_sample_value("baton_relay_calls_total") == 2
    (routed, direct), (far, near) = sorted(chosen(logs), reverse=True), _routes(logs)
    assert direct == ("grpc", [])
    assert routed[0] == "relay"
    assert routed[1][0].startswith(f"grpc: {NOWHERE} could not be reached: "), routed
    assert {far, near} == {"", r.address}


def _routes(logs: list[Any]) -> list[str]:
    return [line["relay"] for line in logs if line["event"] == "prefill route"]


async def test_a_better_way_for_kv_is_taken_though_the_call_is_relayed() -> None:
    asked = generation(prompt(50))
    with capture_logs() as logs:
        async with relayed() as (c, r), session(c.decode[0]) as s:
            stream = s.submit(asked, c.prefill[0], address=NOWHERE)
            assert await stream.finished() == expected(asked)
            assert r.metrics.registry.get_sample_value("baton_relay_calls_total") == 1
            assert r.metrics.registry.get_sample_value("baton_relay_kv_bytes_total") == 0
    assert chosen(logs) == [("shm", [])]


async def test_what_the_prefill_worker_answers_passes_through() -> None:
    other = replace(LAYOUT, layers=5)
    port = next(ports.free("127.0.0.1"))
    async with (
        cluster(decode=0) as c,
        cluster(prefill=0, layout=other, relay=f"127.0.0.1:{port}", **FORCED) as d,
        relay([c.prefill[0].address], [d.decode[0].address], port) as r,
        calling(r.address) as caller,
        session(d.decode[0]) as s,
    ):
        call = await caller.prefill(d.decode[0].instance_id, c.prefill[0].instance_id)
        error = await _refusal(call)
        assert isinstance(error, IncompatiblePeer)
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await call.details() == error.message
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert (
            isinstance(error, IncompatiblePeer)
            and "layers 3 of the prefill worker, 5 of the decode" in error.message
        )


# -- who is let through ----------------------------------------------------------------------


async def _refusal(call: Any) -> BatonError:
    async with asyncio.timeout(30):
        while (event := await call.read()) is not grpc.aio.EOF:
            if event.WhichOneof("message") == "error":
                return wire.error_from_wire(event.error)
    raise AssertionError("no error was said")


async def test_only_registered_live_workers_are_let_through() -> None:
    async with (
        FakePrefill() as p,
        FakeWorker() as d,
        FakePrefill() as stranger,
        FakeWorker() as other,
        relay([p.address], [d.address, other.address]) as r,
        calling(r.address) as caller,
    ):
        for who, whom, kind, says in (
            ("f" * 32, p.instance_id, RelayRefused, "decode worker with instance id 'ffff"),
            (p.instance_id, p.instance_id, RelayRefused, "no live decode worker"),
            (d.instance_id, "e" * 32, RelayRefused, "prefill worker with instance id 'eeee"),
            (d.instance_id, stranger.instance_id, RelayRefused, stranger.instance_id),
            (d.instance_id, stranger.address, RelayRefused, stranger.address),
            (d.instance_id, d.instance_id, RelayRefused, "no live prefill worker"),
            (d.instance_id, None, RequestError, "baton-target"),
        ):
            error = await _refusal(await caller.prefill(who, whom))
            assert isinstance(error, kind) and says in error.message, error
            assert error.retryable == (kind is RelayRefused)
        await other.kill()
        await eventually(lambda: len(r.registry.roster.workers) == 2)
        error = await _refusal(await caller.prefill(other.instance_id, p.instance_id))
        assert isinstance(error, RelayRefused) and other.instance_id in error.message
        assert not p.requests and not stranger.requests
        call = await caller.prefill(d.instance_id, p.instance_id)
        assert (await call.read()).accepted.kv_token == p.token


async def test_a_decode_worker_is_told_which_relay_refused_it() -> None:
    port = next(ports.free("127.0.0.1"))
    async with (
        FakeWorker() as other,
        cluster(relay=f"127.0.0.1:{port}", **FORCED) as c,
        relay([c.prefill[0].address], [other.address], port) as r,
        session(c.decode[0]) as s,
    ):
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, RelayRefused) and error.retryable
        assert r.address in error.message and c.decode[0].instance_id in error.message


async def test_a_token_is_good_for_its_call_and_as_long_as_that() -> None:
    frames = [kv_pb2.KvFrame(layer=i, payload=b"kv").SerializeToString() for i in range(3)]
    async with (
        FakePrefill(frames=frames) as p,
        FakeWorker() as d,
        relay([p.address], [d.address]) as r,
        calling(r.address) as caller,
    ):
        early = caller.read(p.token)  # the prefill worker would take it: it never went through
        with pytest.raises(grpc.aio.AioRpcError, match="no such hand-off"):
            await early.read()
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        assert [frame.layer async for frame in caller.read(p.token)] == [0, 1, 2]
        with pytest.raises(grpc.aio.AioRpcError, match="no such hand-off"):
            await caller.read(b"x" * 16).read()
        call.cancel()
        await eventually(lambda: not p.calls and not r.relay.calls)
        with pytest.raises(grpc.aio.AioRpcError, match="no such hand-off"):
            await caller.read(p.token).read()
        assert p.sent == 3


async def test_more_than_it_takes_at_once_is_refused() -> None:
    async with (
        FakePrefill(frames=[bytes(2**20)] * 64) as p,
        FakeWorker() as d,
        relay([p.address], [d.address], max_calls=1, max_reads=1) as r,
        calling(r.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        error = await _refusal(await caller.prefill(d.instance_id, p.instance_id))
        assert isinstance(error, RelayRefused) and "1 Prefill calls" in error.message
        caller.read(p.token)
        await eventually(lambda: p.reads == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="1 KV streams"):
            await caller.read(p.token).read()
        call.cancel()
        await eventually(lambda: not r.relay.calls and not p.calls)
        assert (await (await caller.prefill(d.instance_id, p.instance_id)).read()).accepted.kv_token


async def test_a_relay_that_leaves_finishes_what_it_has() -> None:
    async with (
        FakePrefill(frames=[b"", b""]) as p,
        FakeWorker() as d,
        relay([p.address], [d.address]) as r,
        calling(r.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        leaving = asyncio.create_task(r.drain(20.0))
        await eventually(lambda: r.relay.leaving)
        error = await _refusal(await caller.prefill(d.instance_id, p.instance_id))
        assert isinstance(error, RelayRefused) and "leaving" in error.message
        assert [frame async for frame in caller.read(p.token)] == [kv_pb2.KvFrame()] * 2
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(leaving, 10)


# -- the call tree is the ownership tree ------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4])
async def test_cancelled_at_any_stage_frees_both_sides(delay: float) -> None:
    asked = [generation(prompt(50, i), request_id=str(i), max_tokens=40) for i in range(3)]
    last = generation(prompt(45), request_id="last")
    async with (
        relayed(num_blocks=128, cost=SLOW, **FORCED) as (c, r),
        session(c.decode[0]) as s,
    ):
        streams = [s.submit(each, c.prefill[0]) for each in asked]
        await asyncio.sleep(delay)
        for stream in streams:
            s.cancel(stream)
        await c.settle()
        await eventually(lambda: not r.relay.calls and not r.relay.reads)
        assert await s.submit(last, c.prefill[0]).finished() == expected(last)


async def test_a_read_that_waits_ends_with_its_call() -> None:
    """Its reader takes nothing: the sender is let go all the same."""
    async with (
        FakePrefill(frames=[bytes(2**20)] * 64) as p,
        FakeWorker() as d,
        relay([p.address], [d.address]) as r,
        calling(r.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        reading = caller.read(p.token)
        await eventually(lambda: p.sent > 0)
        call.cancel()
        await eventually(lambda: not p.reads and not p.calls and not r.relay.calls)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await reading.read() is not grpc.aio.EOF:
                pass
        assert ended.value.code() is grpc.StatusCode.ABORTED
        await eventually(lambda: not r.relay.reads)


async def test_a_silent_decode_worker_is_noticed_at_the_other_end() -> None:
    start = prefill_pb2.PrefillStart(
        generation=wire.generation_to_wire(generation(prompt(40))),
        transports=[kv_pb2.TransportOffer(name="relay", version=1)],
    )
    async with relayed(**FORCED) as (c, r), calling(r.address) as caller:
        start.identity.CopyFrom(wire.identity_to_wire(c.decode[0].runtime.identity))
        call = await caller.start(start, c.prefill[0].instance_id)
        assert (await call.read()).accepted.transport.name == "relay"
        assert c.prefill[0].runtime.engine.load().blocks.owned
        await c.settle()
        with pytest.raises(grpc.aio.AioRpcError, match="nothing heard"):
            while await call.read() is not grpc.aio.EOF:
                pass


async def test_a_silent_prefill_worker_is_noticed_at_the_other_end() -> None:
    port = next(ports.free("127.0.0.1"))
    async with (
        FakePrefill(accepts=False) as p,
        cluster(prefill=0, relay=f"127.0.0.1:{port}", **FORCED) as c,
        relay([p.address], [c.decode[0].address], port) as r,
        session(c.decode[0]) as s,
    ):
        error = await s.submit(generation(prompt(50)), p).failed()  # type: ignore[arg-type]
        assert isinstance(error, PrefillLost) and "nothing heard" in error.message
        assert f"{p.address} through relay {r.address}" in error.message
        await eventually(lambda: not p.calls and not r.relay.calls)


async def test_a_prefill_worker_killed_in_mid_transfer() -> None:
    asked = generation(prompt(200))
    async with relayed(cost=CostModel(step_s=0.1), **FORCED) as (c, r), session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        await eventually(lambda: r.relay.reads == 1)
        await c.prefill[0].kill()
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable
        assert c.prefill[0].address in error.message
        rest = replace(
            asked, key=replace(asked.key, attempt=1), generated_ids=tuple(stream.token_ids)
        )
        assert stream.token_ids + await s.submit(rest).finished() == expected(asked)


async def test_a_relay_killed_in_mid_transfer() -> None:
    """The attempt can be placed again; a relay that is back is used again."""
    asked, port = generation(prompt(200)), next(ports.free("127.0.0.1"))
    rest = replace(asked, key=replace(asked.key, attempt=1))
    async with (
        cluster(relay=f"127.0.0.1:{port}", cost=SLOW, **FORCED) as c,
        session(c.decode[0]) as s,
    ):
        where = [c.prefill[0].address], [c.decode[0].address], port
        async with relay(*where) as r:
            stream = s.submit(asked, c.prefill[0])
            await eventually(lambda: r.relay.reads == 1)
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable
        await c.settle()
        async with relay(*where) as r:
            assert await s.submit(rest, c.prefill[0]).finished() == expected(asked)
            assert r.metrics.registry.get_sample_value("baton_relay_calls_total") == 1


async def test_without_its_relay_the_error_names_it() -> None:
    async with (
        cluster(relay=NOWHERE, **FORCED) as c,
        session(c.decode[0]) as s,
    ):
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, PrefillLost)
        assert f"{c.prefill[0].address} through relay {NOWHERE}" in error.message
