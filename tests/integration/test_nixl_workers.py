"""Workers hand KV over through NIXL where both can; else the next transport, and why."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from baton.errors import PrefillLost
from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.nixl import needs_nixl
from tests.workers import cluster, expected, generation, prompt, session

pytestmark = needs_nixl

NIXL = {"kv_transports": ["nixl", "grpc"]}
SLOW = CostModel(step_s=0.03)


def chosen(logs: list[dict[str, object]]) -> list[object]:
    return [line["name"] for line in logs if line["event"] == "kv transport"]


async def test_kv_goes_through_nixl_chunk_by_chunk() -> None:
    asked = [generation(prompt(61 + i, i), request_id=str(i)) for i in range(6)]
    again = generation(prompt(66, 5), request_id="its prefix is cached on both sides")
    with capture_logs() as logs:
        async with cluster(num_blocks=256, **NIXL) as c, session(c.decode[0]) as s:
            for stream in [s.submit(each, c.prefill[0]) for each in asked]:
                assert await stream.finished() == expected(stream.asked)
                assert stream.timings.transfer_bytes
            assert await s.submit(again, c.prefill[0]).finished() == expected(again)
            await c.settle()
    assert chosen(logs) == ["nixl"]


async def test_cancelled_at_any_stage_frees_both_sides() -> None:
    last = generation(prompt(45), request_id="last")
    async with cluster(num_blocks=128, cost=SLOW, **NIXL) as c, session(c.decode[0]) as s:
        for number, delay in enumerate((0.0, 0.01, 0.05, 0.1, 0.2, 0.3)):
            streams = [
                s.submit(
                    generation(prompt(50, i), request_id=f"{number}.{i}", max_tokens=40),
                    c.prefill[0],
                )
                for i in range(3)
            ]
            await asyncio.sleep(delay)
            for stream in streams:
                s.cancel(stream)
            await c.settle()
        assert await s.submit(last, c.prefill[0]).finished() == expected(last)


async def test_a_prefill_worker_lost_in_mid_transfer() -> None:
    asked = generation(prompt(200))
    async with cluster(cost=CostModel(step_s=0.2), **NIXL) as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        await eventually(lambda: c.prefill[0].runtime.engine.load().steps > 1)
        await c.prefill[0].kill()
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable


async def test_a_pair_that_cannot_takes_the_next_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As between hosts without RDMA: the first hand-off fails, for the gateway to place again."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    first, second = (generation(prompt(50, i), request_id=str(i)) for i in range(2))
    with capture_logs() as logs:
        async with cluster(**NIXL) as c, session(c.decode[0]) as s:
            error = await s.submit(first, c.prefill[0]).failed()
            assert isinstance(error, PrefillLost) and error.retryable
            assert await s.submit(second, c.prefill[0]).finished() == expected(second)
    assert chosen(logs) == ["nixl", "grpc"]
