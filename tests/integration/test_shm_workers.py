"""Workers of one host hand KV over through shared memory, and say so; else over gRPC, and why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from baton import channels, wire
from baton.errors import PrefillLost
from baton.identity import new_instance_id
from baton.kv.checksums import SUM_BYTES
from baton.kv.shm.wire import name_of
from baton.v1 import worker_pb2, worker_pb2_grpc
from model.engine.mock_runner import CostModel
from tests.shm import descriptors, memories
from tests.workers import (
    LAYOUT,
    Worker,
    cluster,
    expected,
    gateway_identity,
    generation,
    prompt,
    session,
)

#: A page and eight slots of one block: several rounds of the ring for every prompt here.
SMALL = {"shm_bytes": 4096 + 8 * (LAYOUT.block_bytes + SUM_BYTES)}
SLOW = CostModel(step_s=0.03)


async def status(worker: Worker) -> worker_pb2.WorkerStatus:
    """What it says first to whoever watches."""
    request = worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity()))
    async with channels.connect(worker.address, shared=False) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        said: worker_pb2.WorkerStatus = await call.read()
        call.cancel()
        return said


def chosen(logs: list[Any]) -> list[tuple[str, list[str]]]:
    return [(line["name"], line["passed_over"]) for line in logs if line["event"] == "kv transport"]


async def test_kv_goes_through_shared_memory_and_it_is_said_once() -> None:
    asked = [generation(prompt(61 + i, i), request_id=str(i)) for i in range(6)]
    before = descriptors()
    with capture_logs() as logs:
        async with cluster(num_blocks=256, **SMALL) as c, session(c.decode[0]) as s:
            for stream in [s.submit(each, c.prefill[0]) for each in asked]:
                assert await stream.finished() == expected(stream.asked)
                assert stream.timings.transfer_bytes
            assert memories() == 2, "a link is kept"
            await c.settle()
    assert chosen(logs) == [("shm", [])]
    assert not memories()
    assert not [link for link in descriptors() if link not in before and "memfd" in link]


async def test_every_pair_has_its_link() -> None:
    asked = [generation(prompt(40 + i, i), request_id=str(i)) for i in range(8)]
    async with (
        cluster(prefill=2, decode=2, num_blocks=256, **SMALL) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
    ):
        streams = [
            (one, two)[i % 2].submit(each, c.prefill[i // 2 % 2]) for i, each in enumerate(asked)
        ]
        for stream in streams:
            assert await stream.finished() == expected(stream.asked)
        assert memories() == 2 * 4
    assert not memories()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shm_bytes": 4096}, "do not fit in 4096"),
        ({"shm_bytes": 4096 + 2 * LAYOUT.block_bytes}, "do not fit"),
    ],
)
async def test_a_prefill_worker_without_it_says_why(settings: dict[str, Any], reason: str) -> None:
    asked = generation(prompt(50))
    with capture_logs() as logs:
        async with cluster(**settings) as c, session(c.decode[0]) as s:
            assert await s.submit(asked, c.prefill[0]).finished() == expected(asked)
            shm, grpc = (await status(c.prefill[0])).transports
            assert (shm.name, grpc.name, grpc.unavailable) == ("shm", "grpc", "")
            assert reason in shm.unavailable
    ((name, (why,)),) = chosen(logs)
    assert name == "grpc" and why.startswith("shm: ") and reason in why


async def test_a_pair_that_cannot_falls_back_to_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two hosts: the socket of the other instance is not there."""
    asked = generation(prompt(50))
    elsewhere = name_of(new_instance_id())
    monkeypatch.setattr("baton.kv.shm.outlet.name_of", lambda _: elsewhere)
    with capture_logs() as logs:
        async with cluster() as c, session(c.decode[0]) as s:
            assert await s.submit(asked, c.prefill[0]).finished() == expected(asked)
    ((name, (why,)),) = chosen(logs)
    assert name == "grpc" and "no process there listens on this host" in why


async def test_without_a_fallback_the_reason_is_in_the_error() -> None:
    async with cluster(kv_transports=["shm"], shm_bytes=4096) as c, session(c.decode[0]) as s:
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert error.retryable and "do not fit in 4096" in error.message


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.1, 0.2, 0.3])
async def test_cancelled_at_any_stage_frees_both_sides(delay: float) -> None:
    asked = [generation(prompt(50, i), request_id=str(i), max_tokens=40) for i in range(3)]
    last = generation(prompt(45), request_id="last")
    async with cluster(num_blocks=128, cost=SLOW, **SMALL) as c, session(c.decode[0]) as s:
        streams = [s.submit(each, c.prefill[0]) for each in asked]
        await asyncio.sleep(delay)
        for stream in streams:
            s.cancel(stream)
        await c.settle()
        assert await s.submit(last, c.prefill[0]).finished() == expected(last)


async def test_a_prefill_worker_killed_in_mid_transfer() -> None:
    asked = generation(prompt(200))
    async with cluster(cost=SLOW, **SMALL) as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        await asyncio.sleep(0.15)
        await c.prefill[0].kill()
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable
