"""Who waits, who goes first, who is refused at once, and what a request may ask of its time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from baton.v1 import worker_pb2
from tests.fakes import FakeWorker, answering, eventually, write_checkpoint
from tests.gateways import serving

PREFILL = (worker_pb2.ROLE_PREFILL,)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


@pytest.mark.parametrize("gone", ["prefill", "colocated"])
async def test_a_new_request_waits_for_a_worker_that_restarts(checkpoint: Path, gone: str) -> None:
    leaving = FakeWorker(roles=PREFILL) if gone == "prefill" else colocated()
    workers = [FakeWorker(), leaving] if gone == "prefill" else [leaving]
    async with serving(checkpoint, workers, worker_grace=30) as gateway:
        await asyncio.sleep(0.6)  # it has been seen to serve
        await leaving.kill()
        await gateway.until_healthy(len(workers) - 1)
        asking = asyncio.create_task(gateway.complete())
        await asyncio.sleep(0.3)
        assert not asking.done()
        again = FakeWorker(
            roles=leaving.roles, local_prefill=leaving.local_prefill, port=leaving.port
        )
        async with again:
            assert (await asking).status_code == 200


async def test_it_does_not_wait_for_long(checkpoint: Path) -> None:
    leaving = colocated()
    async with serving(checkpoint, [leaving], worker_grace=1) as gateway:
        await asyncio.sleep(0.6)
        await leaving.kill()
        await gateway.until_healthy(0)
        for _ in range(2):  # soon, then at once
            async with asyncio.timeout(30):
                refused = await gateway.complete()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
            assert int(refused.headers["retry-after"]) >= 1


async def test_priorities_order_those_who_wait(checkpoint: Path) -> None:
    worker = colocated(blocks_free=0)
    async with serving(checkpoint, [worker]) as gateway:
        asking = []
        for number, priority in enumerate((0, 5, -5, 0, 100, -100)):
            body = {"prompt": [number], "priority": priority}
            asking.append(asyncio.create_task(gateway.complete(**body)))
            await eventually(lambda: gateway.metric("baton_queue_tokens") == len(asking))
        worker.blocks_free = 1000
        assert {(await answer).status_code for answer in asking} == {200}
    served = [submitted.generation.prompt_ids[0] for submitted in worker.submits]
    assert served == [5, 2, 0, 3, 1, 4], "smaller first, then by arrival"


async def test_what_cannot_have_its_first_token_in_time_is_refused(checkpoint: Path) -> None:
    worker = colocated(queued_tokens=10_000, prefill_us_per_token=1000.0)
    async with serving(checkpoint, [worker], first_token_timeout=60) as gateway:
        assert (await gateway.complete(deadlines={"first_token": 20})).status_code == 200
        refused = await gateway.complete(deadlines={"first_token": 5})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "deadline_out_of_reach"
        assert "10 s of work is ahead" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "7"  # 10 s less three quarters of 5 s
        assert gateway.metric("baton_refusals_total", reason="deadline_out_of_reach") == 1
    assert len(worker.submits) == 1


async def test_deadlines_of_a_request(checkpoint: Path) -> None:
    worker = colocated(script=answering("x", stop_after=0))
    async with serving(checkpoint, [worker], total_timeout=50) as gateway:
        late = await gateway.complete(deadlines={"total": 0.2})
        assert late.status_code == 504
        assert "phase 'total': 0.2 s" in late.json()["error"]["message"]
        sent = worker.submits[0].generation.deadlines
        assert max(sent.prefill, sent.transfer, sent.first_token, sent.total) <= 0.2
        for wrong, says in (
            ({"total": 51}, "'total' is 51 s, but must be at most 50 s"),
            ({"total": -1}, "above 0"),
            ({"total": "1"}, "deadlines.total"),
            ({"lunch": 1}, "'deadlines.lunch' is not supported"),
        ):
            refused = await gateway.complete(deadlines=wrong)
            assert refused.status_code == 400
            assert says in refused.json()["error"]["message"]


async def test_a_full_queue_knows_how_fast_it_drains(checkpoint: Path) -> None:
    worker = colocated(script=answering("x", stop_after=0), prefill_us_per_token=50_000.0)
    async with serving(checkpoint, [worker], max_queue_tokens=1000) as gateway:
        first = asyncio.create_task(gateway.complete(prompt=[1] * 900))
        await worker.submitted(1)
        refused = await gateway.complete(prompt=[1] * 300)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "10"  # 200 tokens too many at 20 a second
        first.cancel()
        await worker.cancelled()
