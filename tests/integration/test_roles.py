"""A worker is told to do something else while it works: nothing is lost, nothing leaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
import pytest

from baton import channels, wire
from baton.errors import Draining, PrefillDraining, PrefillFull, PrefillLost, WorkerFull
from baton.generation import Generation
from baton.identity import ROLES, Role
from baton.v1 import worker_pb2, worker_pb2_grpc
from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.workers import (
    CONTEXT,
    Stream,
    Worker,
    cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
    status,
)

#: Slow enough to be caught in the act.
SLOW = CostModel(step_s=0.02)
SLOW_PREFILL = CostModel(prefill_token_s=0.02)
BLOCKS = 64
QUARTER = {"prefill_memory": 0.25, "num_blocks": BLOCKS}


async def become(
    worker: Worker, role: str, *, grace: float = 0.0, controller: str = ""
) -> worker_pb2.SetRolesReply:
    """What SetRoles answers, which comes within a second of what the sequences are given."""
    began = time.monotonic()
    request = worker_pb2.SetRolesRequest(
        roles=wire.roles_to_wire(ROLES[role]), grace_ms=round(1000 * grace), controller=controller
    )
    async with channels.connect(worker.address, shared=False) as channel:
        reply = await worker_pb2_grpc.WorkerServiceStub(channel).SetRoles(request)
    assert wire.roles_from_wire(reply.roles) == ROLES[role]
    assert time.monotonic() - began < grace + 15.0, "one second, on a machine that is not busy"
    return reply


def continued(stream: Stream) -> Generation:
    """What the gateway asks next of an attempt that was handed back."""
    asked = stream.asked
    return generation(
        asked.prompt_ids,
        request_id=asked.key.request_id,
        attempt=asked.key.attempt + 1,
        generated=(*asked.generated_ids, *stream.token_ids),
        max_tokens=asked.sampling.max_tokens,
    )


def asked(count: int, length: int = 20, max_tokens: int = 60) -> Sequence[Generation]:
    return [
        generation(prompt(length, 50 * i), request_id=str(i), max_tokens=max_tokens)
        for i in range(count)
    ]


async def test_what_decodes_is_handed_back_and_goes_on_elsewhere() -> None:
    async with (
        cluster(prefill=1, decode=2, cost=SLOW, num_blocks=128) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as other,
    ):
        changing, stays = c.decode
        streams = [one.submit(each, c.prefill[0]) for each in asked(4)]
        for stream in streams:
            await stream.progress.wait()
        assert (await become(changing, "prefill")).handed_back == len(streams)
        for stream in streams:
            assert isinstance(await stream.failed(), Draining)
            assert 0 < len(stream.token_ids) < 60
        # Where they were decoded they are prefilled now: from its own prefix cache.
        going_on = [other.submit(continued(stream), changing) for stream in streams]
        for stream, rest in zip(streams, going_on, strict=True):
            assert stream.token_ids + await rest.finished() == expected(stream.asked)
            assert rest.timings.prefill_instance_id == changing.instance_id
            assert rest.timings.prefill_cached_tokens >= 20
        assert isinstance(await one.submit(generation(prompt(9)), c.prefill[0]).failed(), Draining)
        assert not one.ended.done(), "the session stays, for when it decodes again"
        assert not stays.runtime.engine.load().failed


async def test_what_ends_within_the_grace_is_left_to_end() -> None:
    async with cluster(decode=1, cost=SLOW) as c, session(c.decode[0]) as s:
        stream = s.submit(generation(prompt(9), max_tokens=10), c.prefill[0])
        await stream.progress.wait()
        assert (await become(c.decode[0], "prefill", grace=30.0)).handed_back == 0
        assert await stream.finished() == expected(stream.asked)


async def test_prefill_calls_finish_while_it_decodes_already() -> None:
    async with (
        cluster(prefill=0, decode=2, cost=SLOW_PREFILL) as c,
        session(c.decode[1]) as s,
        session(c.decode[0]) as new,
    ):
        changing = c.decode[0]
        await become(changing, "prefill")
        under_way = s.submit(generation(prompt(60)), changing)
        await eventually(lambda: changing.runtime.engine.live(Role.PREFILL) == 1)
        reply = await become(changing, "decode")
        assert reply.finishing == 1 and not under_way.ended.done()
        decoded = new.submit(generation(prompt(10, 300)))
        refused = await s.submit(generation(prompt(9, 7), request_id="late"), changing).failed()
        assert isinstance(refused, PrefillDraining) and "does not prefill now" in refused.message
        assert await under_way.finished() == expected(under_way.asked)
        assert under_way.timings.prefill_instance_id == changing.instance_id
        assert await decoded.finished() == expected(decoded.asked)


async def test_back_and_forth_under_streams() -> None:
    """Two workers swap their roles again and again; each stream goes on where there is decode."""
    async with (
        cluster(prefill=0, decode=2, cost=CostModel(step_s=0.01), num_blocks=512) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as other,
    ):
        sessions = {0: one, 1: other}
        decoding = moved = 0
        await become(c.decode[1], "prefill")

        async def follow(first: Generation) -> list[int]:
            """As the gateway does: place, take what comes, place again."""
            here = sessions[decoding]
            stream = here.submit(first, c.decode[1 - decoding])
            got: list[int] = []
            while True:
                try:
                    return got + await stream.finished()
                except (Draining, PrefillLost):
                    got += stream.token_ids
                    await asyncio.sleep(0.005)
                    again = continued(stream)
                    stream = sessions[decoding].submit(again, c.decode[1 - decoding])

        async with asyncio.TaskGroup() as group:
            following = [group.create_task(follow(each)) for each in asked(8, max_tokens=200)]
            for _ in range(6):
                await asyncio.sleep(0.2)
                await become(c.decode[1 - decoding], "both")
                reply = await become(c.decode[decoding], "prefill", grace=0.05)
                moved += reply.handed_back
                decoding = 1 - decoding
                await become(c.decode[decoding], "decode")
        assert moved >= 8
        for task, each in zip(following, asked(8, max_tokens=200), strict=True):
            assert task.result() == expected(each)


async def test_both_roles_share_the_memory_and_hand_nothing_over_to_themselves() -> None:
    async with (
        cluster(prefill=0, decode=2, cost=SLOW_PREFILL, **QUARTER) as c,
        session(c.decode[0]) as s,
        session(c.decode[1]) as elsewhere,
    ):
        both = c.decode[0]
        assert (await status(both)).max_model_len == BLOCKS * 4
        await become(both, "both")
        said = await status(both)
        quota = BLOCKS // 4
        assert said.max_model_len == quota * 4 < CONTEXT
        assert (said.load.prefill_room, said.load.HasField("prefill_room")) == (quota, True)
        prompts = [generation(prompt(40, 60 * i), request_id=f"p{i}") for i in range(2)]
        first = elsewhere.submit(prompts[0], both)
        await eventually(lambda: both.runtime.engine.live(Role.PREFILL) == 1)
        assert (await status(both)).load.prefill_room == quota - 10
        refused = await elsewhere.submit(prompts[1], both).failed()
        assert isinstance(refused, PrefillFull) and "need room" in refused.message
        own = s.submit(generation(prompt(60, 400), max_tokens=100), both)
        assert await own.finished() == expected(own.asked)
        assert own.timings.prefill_instance_id == both.instance_id
        assert own.timings.transfer_bytes == 0
        assert await first.finished() == expected(prompts[0])
        long = await s.submit(generation(prompt(100), max_tokens=110), None).failed()
        assert isinstance(long, WorkerFull), "it fits a worker of one role: it may go there"
        await become(both, "decode")
        again = s.submit(generation(prompt(100), max_tokens=110, attempt=1), None)
        assert len(await again.finished()) == 110


async def test_the_status_tells_at_once() -> None:
    async with (
        cluster(prefill=0, heartbeat_interval=30.0) as c,
        channels.connect(c.decode[0].address) as channel,
    ):
        request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity()))
        watch = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        before = await watch.read()
        assert wire.roles_from_wire(before.possible_roles) == frozenset(Role)
        await become(c.decode[0], "prefill")
        async with asyncio.timeout(10.0):  # a beat is 30 s
            after = await watch.read()
        assert list(after.roles) == [worker_pb2.ROLE_PREFILL]
        assert after.roles_since_ms < 10_000
        assert after.identity == before.identity, "the same process"
        watch.cancel()


async def test_a_change_that_nobody_waits_for_is_brought_to_its_end() -> None:
    async with (
        cluster(decode=1, cost=SLOW) as c,
        session(c.decode[0]) as s,
        channels.connect(c.decode[0].address) as channel,
    ):
        stream = s.submit(generation(prompt(9), max_tokens=200), c.prefill[0])
        await stream.progress.wait()
        request = worker_pb2.SetRolesRequest(roles=[worker_pb2.ROLE_PREFILL], grace_ms=500)
        call = worker_pb2_grpc.WorkerServiceStub(channel).SetRoles(request)
        await asyncio.sleep(0.1)
        call.cancel()
        assert isinstance(await stream.failed(), Draining)


async def test_only_the_gateway_that_all_name_changes_roles_unasked() -> None:
    low, high = (gateway_identity(instance_id=name * 32) for name in "ab")
    async with cluster(prefill=0) as c, channels.connect(c.decode[0].address) as channel:
        worker = c.decode[0]
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        watches = {}
        for each in (high, low):
            request = worker_pb2.WatchRequest(
                identity=wire.identity_to_wire(each), controls_roles=True
            )
            watches[each.instance_id] = stub.Watch(request)
            said = await watches[each.instance_id].read()
            assert said.controller == each.instance_id
        with pytest.raises(grpc.aio.AioRpcError, match=f"{low.instance_id} does"):
            await become(worker, "both", controller=high.instance_id)
        await become(worker, "both", controller=low.instance_id)
        watches[low.instance_id].cancel()
        async with asyncio.timeout(10.0):
            while (await watches[high.instance_id].read()).controller != high.instance_id:
                pass
        await become(worker, "decode", controller=high.instance_id)
        watches[high.instance_id].cancel()
        while (await status(worker)).controller:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("role", ["decode", "both"])
async def test_a_prefill_process_refuses_what_it_cannot_do(role: str) -> None:
    async with cluster(decode=0) as c:
        with pytest.raises(grpc.aio.AioRpcError, match="can only prefill") as refused:
            await become(c.prefill[0], role)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await become(c.prefill[0], "prefill")


async def test_a_pool_of_one_block_is_not_shared() -> None:
    async with cluster(prefill=0, num_blocks=1) as c:
        with pytest.raises(grpc.aio.AioRpcError, match="1 block cannot be shared"):
            await become(c.decode[0], "both")
    with pytest.raises(ValueError, match=r"--role both: .* 1 block cannot be shared"):
        async with cluster(prefill=0, num_blocks=1, role="both"):
            pass


async def test_no_role_at_all_is_no_role() -> None:
    async with cluster(prefill=0) as c, channels.connect(c.decode[0].address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="names none"):
            await stub.SetRoles(worker_pb2.SetRolesRequest(roles=[77]))  # type: ignore[list-item]
        assert list((await status(c.decode[0])).roles) == [worker_pb2.ROLE_DECODE]
