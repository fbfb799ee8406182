"""Where a prompt is computed, decided by a decode worker: the tokens are the same wherever.

A session says of the prefill worker what a gateway would; the last test has a real one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from baton import channels, wire
from baton.generation import Generation
from baton.v1 import worker_pb2, worker_pb2_grpc
from model.engine.mock_runner import CostModel
from tests.fakes import (
    MODEL,
    FakeSession,
    FakeWorker,
    Submitted,
    answering,
    eventually,
    write_checkpoint,
)
from tests.gateways import serving
from tests.workers import (
    BLOCK,
    CALM,
    CALM_GATEWAY,
    Worker,
    cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
)

#: A decode step takes 5 ms, a prompt token 1 ms: of the target, two fit a step that decodes.
COST = CostModel(step_s=0.005, prefill_token_s=0.001)
TARGET_MS = 7.0
#: Of this one a few tokens are no part to speak of, so any hand-off is dearer, however quick.
AMPLE = {"itl_target_ms": 10_000.0}
KNOWN = {"prefill_us_per_token": 1000.0}


def second_turn(first: Generation, suffix: int) -> Generation:
    """What is asked next: the first prompt, its answer, and so many more tokens."""
    return generation(
        (*first.prompt_ids, *expected(first), *range(suffix)), request_id="second turn"
    )


async def counted(worker: Worker) -> dict[tuple[bool, str], int]:
    """The worker's counts by where and why, as its status tells them."""
    async with channels.connect(worker.address) as channel:
        request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity()))
        watch = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        status = await watch.read()
        watch.cancel()
    return {(d.local, d.reason): d.count for d in status.prefill_decisions}


async def test_a_short_suffix_stays_where_its_prefix_is() -> None:
    first = generation(prompt(60))
    second = second_turn(first, 6)
    async with cluster(cost=COST, **AMPLE) as c, session(c.decode[0]) as s:
        stream = s.submit(first, c.prefill[0])
        assert await stream.finished() == expected(first)
        assert stream.timings.prefill_instance_id == c.prefill[0].instance_id
        steps = c.prefill[0].runtime.engine.load().steps
        stream = s.submit(second, c.prefill[0], **KNOWN)
        assert await stream.finished() == expected(second)
        assert stream.timings.prefill_instance_id == c.decode[0].instance_id
        assert stream.timings.decode_cached_tokens == (60 + 7) // BLOCK * BLOCK
        assert stream.timings.transfer_bytes == 0
        assert c.prefill[0].runtime.engine.load().steps == steps
        assert await counted(c.decode[0]) == {(False, "unmeasured"): 1, (True, "cheaper"): 1}


async def test_a_prompt_that_is_cached_whole_takes_one_block_more() -> None:
    """Its last token is computed again, and not into a block that others share."""
    asked = [generation(prompt(16 * BLOCK), request_id=str(i)) for i in range(3)]
    async with cluster(cost=COST) as c, session(c.decode[0]) as s:
        for each, known in zip(asked, ({}, KNOWN, KNOWN), strict=True):
            stream = s.submit(each, c.prefill[0], queued_tokens=100, **known)
            assert await stream.finished() == expected(each)
        assert await counted(c.decode[0]) == {(False, "unmeasured"): 1, (True, "cheaper"): 2}


async def test_a_long_fresh_prompt_leaves_the_batch_alone() -> None:
    """Beside decodes it would take three and a half times as long here as there."""
    running = generation(prompt(20, 3), request_id="running", max_tokens=150)
    asked = generation(prompt(100))
    async with (
        cluster(cost=COST, num_blocks=128, itl_target_ms=TARGET_MS) as c,
        session(c.decode[0]) as s,
    ):
        decoding = s.submit(running)
        await decoding.progress.wait()
        await asyncio.sleep(0.02)
        stream = s.submit(asked, c.prefill[0], **KNOWN)
        assert await stream.finished() == expected(asked)
        assert stream.timings.prefill_instance_id == c.prefill[0].instance_id
        assert await decoding.finished() == expected(running)
        assert await counted(c.decode[0]) == {(True, "no_target"): 1, (False, "dearer"): 1}


async def test_a_long_suffix_beside_decodes_stays_if_the_other_queue_is_long() -> None:
    """It is computed in small chunks between the steps of the batch, and gets done."""
    running = generation(prompt(20, 3), request_id="running", max_tokens=150)
    asked = generation(prompt(60))
    async with (
        cluster(cost=COST, num_blocks=128, itl_target_ms=TARGET_MS) as c,
        session(c.decode[0]) as s,
    ):
        decoding = s.submit(running)
        await decoding.progress.wait()
        await asyncio.sleep(0.02)
        stream = s.submit(asked, c.prefill[0], queued_tokens=10_000, **KNOWN)
        assert await stream.finished() == expected(asked)
        assert stream.timings.prefill_instance_id == c.decode[0].instance_id
        assert await decoding.finished() == expected(running)


async def test_a_full_queue_sends_prompts_away() -> None:
    slow = CostModel(prefill_token_s=0.02)
    busy = {"queued_tokens": 10_000, "prefill_us_per_token": 20_000.0}
    asked = [generation(prompt(20, i), request_id=str(i)) for i in range(3)]
    async with (
        cluster(cost=slow, num_blocks=128, local_prefill_queue=32) as c,
        session(c.decode[0]) as s,
    ):
        streams = [s.submit(each, c.prefill[0], **busy) for each in asked]
        for stream in streams:
            assert await stream.finished() == expected(stream.asked)
        places = [stream.timings.prefill_instance_id for stream in streams]
        assert places == [c.decode[0].instance_id] + 2 * [c.prefill[0].instance_id]
        assert await counted(c.decode[0]) == {(True, "cheaper"): 1, (False, "queue_full"): 2}


async def test_switched_off() -> None:
    asked = generation(prompt(20))
    async with cluster(cost=COST, local_prefill_queue=0) as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0], queued_tokens=10_000, **KNOWN)
        assert await stream.finished() == expected(asked)
        assert stream.timings.prefill_instance_id == c.prefill[0].instance_id
        assert await counted(c.decode[0]) == {(False, "switched_off"): 1}


async def test_a_colocated_worker_counts_too() -> None:
    asked = generation(prompt(20))
    async with cluster(local_prefill=True) as c, session(c.decode[0]) as s:
        assert await s.submit(asked, c.prefill[0], **KNOWN).finished() == expected(asked)
        assert await counted(c.decode[0]) == {(True, "colocated"): 1}


async def test_cancelled_while_it_is_computed_here() -> None:
    asked = [generation(prompt(60, i), request_id=str(i)) for i in range(2)]
    slow = CostModel(prefill_token_s=0.02)
    async with cluster(cost=slow, num_blocks=128) as c, session(c.decode[0]) as s:
        streams = [s.submit(each, c.prefill[0], queued_tokens=9999, **KNOWN) for each in asked]
        await eventually(lambda: c.decode[0].runtime.engine.load().queued_tokens > 0)
        for stream in streams:
            s.cancel(stream)
        await c.settle()
        assert not any(stream.ended.done() for stream in streams)


async def test_a_gateway_passes_on_what_it_knows(tmp_path: Path) -> None:
    """Queued tokens include what it placed itself and no report shows yet."""

    async def both_there(session: FakeSession, submitted: Submitted) -> None:
        await decode.submitted(2)
        await answering("hello")(session, submitted)

    prefill = FakeWorker(
        roles=(worker_pb2.ROLE_PREFILL,), queued_tokens=700, prefill_us_per_token=12.5, beat=5.0
    )
    decode = FakeWorker(script=both_there)
    async with serving(write_checkpoint(tmp_path / "toy"), [decode, prefill]) as gateway:
        both = [gateway.complete([1] * length, max_tokens=3) for length in (30, 40)]
        await asyncio.gather(*both)
        told = {len(s.generation.prompt_ids): s.prefill for s in decode.submits}
    assert {target.prefill_us_per_token for target in told.values()} == {12.5}
    assert [told[30].queued_tokens, told[40].queued_tokens] in ([700, 730], [740, 700])


async def test_a_gateway_says_what_it_takes(tmp_path: Path) -> None:
    """Two turns through gateway, prefill and decode worker; /cluster tells costs and counts."""
    first = generation(tuple(range(60)))  # ids that the toy tokenizer has
    second = second_turn(first, 6)
    settings = {"served_model_name": MODEL, **CALM, **AMPLE}
    async with cluster(cost=COST, **settings) as c:
        addresses = [worker.address for worker in c.workers]
        checkpoint = write_checkpoint(tmp_path / "toy")
        async with (
            serving(checkpoint, [], healthy=2, prefill=addresses, **CALM_GATEWAY) as gateway,
            httpx.AsyncClient(base_url=gateway.admin_url, timeout=20) as admin,
        ):

            async def worker(role: str) -> dict[str, Any]:
                workers = (await admin.get("/cluster")).json()["workers"]
                return next(w for w in workers if w.get("roles") == [role])

            async def ask(asked: Generation) -> None:
                answer = await gateway.complete(
                    list(asked.prompt_ids),
                    max_tokens=8,
                    temperature=0,
                    ignore_eos=True,
                    return_token_ids=True,
                )
                assert answer.json()["choices"][0]["token_ids"] == expected(asked)

            async with asyncio.timeout(60):
                await ask(first)
                while (await worker("prefill"))["load"]["prefill_token"] < 0.001:
                    await asyncio.sleep(0.02)
                await ask(second)
                while len(decisions := (await worker("decode"))["prefill_decisions"]) < 2:
                    await asyncio.sleep(0.02)
        assert decisions == [
            {"local": False, "reason": "unmeasured", "count": 1},
            {"local": True, "reason": "cheaper", "count": 1},
        ]
