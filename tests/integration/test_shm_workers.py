"""Workers of one host hand KV over through shared memory, and say so; else over gRPC, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from baton.errors import HandoffFailed, PrefillLost
from baton.identity import new_instance_id
from baton.kv.checksums import SUM_BYTES
from baton.kv.shm.segment import Segment
from baton.kv.shm.wire import name_of
from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.shm import descriptors, memories
from tests.workers import (
    LAYOUT,
    cluster,
    expected,
    generation,
    prompt,
    session,
    status,
)

#: A page and eight slots of one block: several rounds of the ring for every prompt here.
SMALL = {"shm_bytes": 4096 + 8 * (LAYOUT.block_bytes + SUM_BYTES)}
SLOW = CostModel(step_s=0.03)


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
            (pairing,) = (await status(c.decode[0])).kv_pairings
            assert pairing.instance_id == c.prefill[0].instance_id
            assert (pairing.transport, pairing.complete, pairing.failed) == ("shm", 6, 0)
            assert pairing.bytes == sum(s.timings.transfer_bytes for s in s.streams.values())
            assert pairing.bytes_per_s > 0
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
            shm, grpc, _ = (await status(c.prefill[0])).transports
            assert (shm.name, grpc.name, grpc.unavailable) == ("shm", "grpc", "")
            assert reason in shm.unavailable
            (pairing,) = (await status(c.decode[0])).kv_pairings
            assert pairing.transport == "grpc" and reason in pairing.downgrades[0]
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
    async with cluster(cost=CostModel(step_s=0.2), **SMALL) as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        await eventually(lambda: c.prefill[0].runtime.engine.load().steps > 1)
        await c.prefill[0].kill()
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable


# -- checksums -------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["shm", "grpc"])
async def test_slow_pairs_get_checksums_by_themselves(transport: str) -> None:
    """A few kB over several steps of 30 ms: next to that checksums are nothing."""
    asked = [generation(prompt(40 + i, i), request_id=str(i)) for i in range(2)]
    settings = {"kv_transports": [transport], "cost": SLOW} | SMALL
    async with cluster(**settings) as c, session(c.decode[0]) as s:
        for each, on in zip(asked, (False, True), strict=True):
            assert await s.submit(each, c.prefill[0]).finished() == expected(each)
            (pairing,) = (await status(c.decode[0])).kv_pairings
            assert pairing.checksums is on


async def test_a_slot_that_was_damaged_is_never_decoded_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damage(segment: Segment, slot: int, sums: Sequence[int]) -> None:
        put_sums(segment, slot, sums)
        with segment.slot(slot) as target:
            target[5] ^= 1

    put_sums = Segment.put_sums
    monkeypatch.setattr(Segment, "put_sums", damage)
    asked = generation(prompt(61))
    async with cluster(kv_checksums="on", **SMALL) as c, session(c.decode[0]) as s:
        error = await s.submit(asked, c.prefill[0]).failed()
        assert isinstance(error, HandoffFailed) and error.retryable
        assert "layer 0, tokens 0 to 4, is damaged" in error.message
        (pairing,) = (await status(c.decode[0])).kv_pairings
        assert (pairing.checksums, pairing.complete, pairing.failed) == (True, 0, 1)
        monkeypatch.setattr(Segment, "put_sums", put_sums)
        again = replace(asked, key=replace(asked.key, attempt=1))
        assert await s.submit(again, c.prefill[0]).finished() == expected(asked)


async def test_without_them_a_damaged_slot_goes_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would miss if checksums were not what catches it."""

    def damage(segment: Segment, slot: int, sums: Sequence[int]) -> None:
        assert not sums
        with segment.slot(slot) as target:
            target[5] ^= 1

    monkeypatch.setattr(Segment, "put_sums", damage)
    asked = generation(prompt(61))
    async with cluster(kv_checksums="off", **SMALL) as c, session(c.decode[0]) as s:
        assert await s.submit(asked, c.prefill[0]).finished() != expected(asked)
