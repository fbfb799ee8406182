"""Prefill here, decode there: the tokens must be those of one process, whatever happens between.

The mock's KV is a hash chain read back from the pool, so a block that is wrong, missing, stale
or misplaced changes the tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from baton.cli import ports
from baton.errors import (
    DeadlineExceeded,
    HandoffFailed,
    IncompatiblePeer,
    PrefillFull,
    PrefillLost,
    WorkerFull,
)
from baton.generation import FinishReason
from baton.kv.transport import Agreement, negotiate
from baton.v1 import kv_pb2
from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.workers import (
    BLOCK,
    LAYOUT,
    UNLIMITED,
    cluster,
    expected,
    generation,
    kv_relay,
    prompt,
    session,
    status,
)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 61, 64, 65])
async def test_tokens_are_those_of_one_process(length: int) -> None:
    asked = generation(prompt(length))
    async with cluster() as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        assert await stream.finished() == expected(asked)
        assert stream.reason is FinishReason.LENGTH
        assert stream.timings.prefill_instance_id == c.prefill[0].instance_id
        assert stream.timings.transfer_bytes == -(-length // BLOCK) * 3 * LAYOUT.block_bytes


async def test_local_prefill_gives_the_same() -> None:
    asked = generation(prompt(50), temperature=1.0, seed=7)
    async with cluster(prefill=0) as c, session(c.decode[0]) as s:
        stream = s.submit(asked)
        assert await stream.finished() == expected(asked)
        assert stream.timings.prefill_instance_id == c.decode[0].instance_id


async def test_colocated_worker_prefills_whatever_it_is_told() -> None:
    asked = generation(prompt(20))
    async with cluster(local_prefill=True) as c, session(c.decode[0]) as s:
        stream = s.submit(asked, c.prefill[0])
        assert await stream.finished() == expected(asked)
        assert c.prefill[0].runtime.engine.load().steps == 0


async def test_only_what_decode_lacks_is_sent() -> None:
    first = generation(prompt(40), request_id="first")
    longer = generation(prompt(57), request_id="longer")
    again = generation(prompt(56), request_id="again")  # whole blocks: nothing is missing
    async with cluster() as c, session(c.decode[0]) as s:
        await s.submit(first, c.prefill[0]).finished()
        stream = s.submit(longer, c.prefill[0])
        assert await stream.finished() == expected(longer)
        assert stream.timings.decode_cached_tokens == 40
        assert stream.timings.prefill_cached_tokens == 40
        assert stream.timings.transfer_bytes == 5 * 3 * LAYOUT.block_bytes
        stream = s.submit(again, c.prefill[0])
        assert await stream.finished() == expected(again)
        assert stream.timings.transfer_bytes == 0


async def test_a_cache_hit_on_prefill_alone_is_sent_from_there() -> None:
    asked = [generation(prompt(45), request_id=str(i)) for i in range(2)]
    async with cluster(decode=2) as c, session(c.decode[0]) as one, session(c.decode[1]) as two:
        await one.submit(asked[0], c.prefill[0]).finished()
        stream = two.submit(asked[1], c.prefill[0])
        assert await stream.finished() == expected(asked[1])
        assert stream.timings.prefill_cached_tokens == 44
        assert stream.timings.decode_cached_tokens == 0


async def test_a_prefix_that_many_wait_for_is_computed_once_and_sent_to_each() -> None:
    """Each hand-off reads blocks that another call computes, or has computed when it ends first."""
    begin = prompt(60)
    asked = [
        generation((*begin, i), request_id=str(i), max_tokens=1 if i == 1 else 8) for i in range(6)
    ]
    async with (
        cluster(decode=2, chunk_tokens=8, max_step_tokens=72, cost=CostModel(step_s=0.02)) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
    ):
        sessions = [(one, two)[i % 2] for i in range(6)]
        streams = [s.submit(each, c.prefill[0]) for s, each in zip(sessions, asked, strict=True)]
        for stream, each in zip(streams, asked, strict=True):
            assert await stream.finished() == expected(each)
        reused = [stream.timings.prefill_cached_tokens for stream in streams]
        assert sorted(reused) == [0] + [60] * 5


async def test_without_prefix_cache_nothing_is_reused() -> None:
    asked = [generation(prompt(40), request_id=str(i)) for i in range(2)]
    async with cluster(prefix_cache=False) as c, session(c.decode[0]) as s:
        for each in asked:
            stream = s.submit(each, c.prefill[0])
            assert await stream.finished() == expected(each)
            assert stream.timings.decode_cached_tokens == 0
            assert stream.timings.prefill_cached_tokens == 0


async def test_a_replay_goes_on_exactly() -> None:
    whole = generation(prompt(30), temperature=0.8, seed=11, presence_penalty=0.5, max_tokens=12)
    tokens = expected(whole)
    async with cluster() as c, session(c.decode[0]) as s:
        for attempt in range(1, 11):
            key = replace(whole.key, attempt=attempt)
            rest = replace(whole, key=key, generated_ids=tuple(tokens[:attempt]))
            target = c.prefill[0] if attempt % 2 else None
            assert await s.submit(rest, target).finished() == tokens[attempt:]


async def test_the_first_token_may_be_the_last() -> None:
    asked = generation(prompt(30), max_tokens=1)
    tokens = expected(asked)
    stops = generation(prompt(30), request_id="eos", eos_ids=(tokens[0],))
    async with cluster() as c, session(c.decode[0]) as s:
        stream, stopped = s.submit(asked, c.prefill[0]), s.submit(stops, c.prefill[0])
        assert await stream.finished() == tokens
        assert stream.reason is FinishReason.LENGTH
        assert await stopped.finished() == tokens
        assert stopped.reason is FinishReason.STOP


async def test_many_at_once() -> None:
    asked = [generation(prompt(5 + 9 * i, first=i), request_id=str(i)) for i in range(12)]
    async with (
        cluster(prefill=2, decode=2, num_blocks=512) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
    ):
        streams = [
            (one, two)[i % 2].submit(each, c.prefill[i // 2 % 2]) for i, each in enumerate(asked)
        ]
        for stream in streams:
            assert await stream.finished() == expected(stream.asked)


# -- the first token and the KV travel apart -------------------------------------------------


class Gate:
    """A tamper that passes so many frames, then waits until it is opened."""

    def __init__(self, passes: int = 1) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._passes = passes

    async def __call__(self, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        count = 0
        async for frame in frames:
            if count == self._passes:
                self.reached.set()
                await self.open.wait()
            count += 1
            yield frame


async def test_the_first_token_does_not_wait_for_kv() -> None:
    gate, asked = Gate(), generation(prompt(50))
    async with (
        kv_relay(gate, lambda: c.prefill[0].address) as address,
        cluster(kv_address=address) as c,
        session(c.decode[0]) as s,
    ):
        stream = s.submit(asked, c.prefill[0])
        await stream.progress.wait()
        await gate.reached.wait()
        await asyncio.sleep(0.1)
        assert stream.token_ids == expected(asked)[:1]
        gate.open.set()
        assert await stream.finished() == expected(asked)
        assert stream.timings.transfer_tail > 0.1


# -- faults ----------------------------------------------------------------------------------

SLOW = CostModel(step_s=0.03)  # a chunk at a time, so that each layer comes in several frames


async def _drop(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    await anext(frames)
    async for frame in frames:
        yield frame


async def _stop_early(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield await anext(frames)


async def _repeat(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield frame
        yield frame


async def _truncate(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield frame[:-5]


async def _garbage(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield b"\xff" * len(frame)


async def _reorder(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = [await anext(frames) for _ in range(4)]  # three layers: the fourth is layer 0 again
    for frame in (held[3], held[0]):
        yield frame
    async for frame in frames:
        yield frame


@pytest.mark.parametrize("tamper", [_drop, _stop_early, _repeat, _truncate, _garbage, _reorder])
async def test_kv_that_is_not_whole_is_never_decoded_from(tamper: object) -> None:
    asked = generation(prompt(61))
    async with (
        kv_relay(tamper, lambda: c.prefill[0].address) as address,  # type: ignore[arg-type]
        cluster(kv_address=address, cost=SLOW) as c,
        session(c.decode[0]) as s,
    ):
        stream = s.submit(asked, c.prefill[0])
        error = await stream.failed()
        assert isinstance(error, HandoffFailed), error
        assert error.retryable
        assert stream.token_ids == expected(asked)[: len(stream.token_ids)]
        assert len(stream.token_ids) <= 1
        # The same worker, by itself, from what it has received so far.
        rest = replace(
            asked, key=replace(asked.key, attempt=1), generated_ids=tuple(stream.token_ids)
        )
        assert stream.token_ids + await s.submit(rest).finished() == expected(asked)


async def _damage(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield frame[:-1] + bytes([frame[-1] ^ 1])


async def _strip(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        whole = kv_pb2.KvFrame.FromString(frame)
        del whole.checksums[:]
        yield whole.SerializeToString()


async def _pad(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        whole = kv_pb2.KvFrame.FromString(frame)
        whole.checksums.append(0)
        yield whole.SerializeToString()


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_damage, "is damaged: its CRC-32C is"),
        (_strip, "with 0 checksums"),
        (_pad, "checksums for"),
    ],
)
async def test_a_block_without_its_checksum_is_never_decoded_from(
    tamper: object, says: str
) -> None:
    asked = generation(prompt(61))
    async with (
        kv_relay(tamper, lambda: c.prefill[0].address) as address,  # type: ignore[arg-type]
        cluster(kv_address=address, kv_checksums="on") as c,
        session(c.decode[0]) as s,
    ):
        stream = s.submit(asked, c.prefill[0])
        error = await stream.failed()
        assert isinstance(error, HandoffFailed) and error.retryable and says in error.message
        assert len(stream.token_ids) <= 1
        (pairing,) = (await status(c.decode[0])).kv_pairings
        assert (pairing.checksums, pairing.complete, pairing.failed) == (True, 0, 1)


async def test_a_prefill_worker_that_sends_none_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deaf(*args: Any) -> Agreement:
        return replace(negotiate(*args), checksums=False)

    monkeypatch.setattr("prefill_worker.call.negotiate", deaf)
    async with cluster(kv_checksums="on") as c, session(c.decode[0]) as s:
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, HandoffFailed)
        assert "checksums were to be on, but are off" in error.message


# -- stripes ---------------------------------------------------------------------------------


async def _pass(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield frame


@pytest.mark.parametrize("stripes", [2, 3, 5])
async def test_stripes_have_connections_of_their_own(stripes: int) -> None:
    """Also when there are more of them than layers."""
    asked = [generation(prompt(50 + i, i), request_id=str(i)) for i in range(4)]
    peers: list[str] = []
    async with (
        kv_relay(_pass, lambda: c.prefill[0].address, peers) as address,
        cluster(kv_address=address, kv_stripes=stripes, num_blocks=128) as c,
        session(c.decode[0]) as s,
    ):
        for stream in [s.submit(each, c.prefill[0]) for each in asked]:
            assert await stream.finished() == expected(stream.asked)
        assert len(peers) == stripes * len(asked)
        assert len(set(peers)) == stripes, "they are kept"
        (pairing,) = (await status(c.decode[0])).kv_pairings
        assert (pairing.stripes, pairing.complete) == (stripes, len(asked))


async def test_a_lost_stripe_ends_the_hand_off() -> None:
    asked, readings = generation(prompt(61)), iter(range(9))

    async def lose_the_second(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        if next(readings) == 1:
            raise RuntimeError("lost")
        async for frame in frames:
            yield frame

    async with (
        kv_relay(lose_the_second, lambda: c.prefill[0].address) as address,
        cluster(kv_address=address, kv_stripes=3, cost=SLOW) as c,
        session(c.decode[0]) as s,
    ):
        error = await s.submit(asked, c.prefill[0]).failed()
        assert isinstance(error, PrefillLost) and error.retryable
        again = replace(asked, key=replace(asked.key, attempt=1))
        assert await s.submit(again, c.prefill[0]).finished() == expected(asked)


async def test_a_prefill_worker_killed_in_mid_transfer() -> None:
    gate, asked = Gate(2), generation(prompt(61))
    async with (
        kv_relay(gate, lambda: c.prefill[0].address) as address,
        cluster(prefill=2, kv_address=address) as c,
        session(c.decode[0]) as s,
    ):
        stream = s.submit(asked, c.prefill[0])
        await gate.reached.wait()
        await c.prefill[0].kill()
        gate.open.set()
        error = await stream.failed()
        assert isinstance(error, PrefillLost) and error.retryable


async def test_a_prefill_worker_that_is_not_there() -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        await c.prefill[0].kill()
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, PrefillLost)
        assert c.prefill[0].address in error.message


async def dials(address: str) -> int:
    """How often somebody connects to ``address``, where nobody listened so far, in two seconds."""
    count = 0

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.close()

    host, port = address.split(":")
    async with await asyncio.start_server(connected, host, int(port)):
        await asyncio.sleep(2)
    return count


@pytest.mark.usefixtures("uncollected")
async def test_a_lost_prefill_worker_is_not_dialled_again() -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        await c.prefill[0].kill()
        for i in range(2):
            asked = generation(prompt(20), request_id=str(i))
            assert isinstance(await s.submit(asked, c.prefill[0]).failed(), PrefillLost)
        assert await dials(c.prefill[0].address) == 0


@pytest.mark.usefixtures("uncollected")
async def test_a_lost_kv_service_is_not_dialled_again() -> None:
    address = f"127.0.0.1:{next(ports.free('127.0.0.1'))}"
    async with cluster(kv_address=address) as c, session(c.decode[0]) as s:
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, PrefillLost) and f"reading KV from {address}" in error.message
        assert await dials(address) == 0


async def test_another_instance_at_the_address() -> None:
    async with cluster() as c, session(c.decode[0]) as s:
        stream = s.submit(generation(prompt(20)), c.prefill[0], instance_id="f" * 32)
        error = await stream.failed()
        assert isinstance(error, PrefillLost)
        assert "f" * 32 in error.message and c.prefill[0].instance_id in error.message


async def test_workers_of_different_classes_do_not_pair() -> None:
    other = replace(LAYOUT, layers=5, model_revision="other")
    async with cluster() as c, cluster(layout=other) as d, session(d.decode[0]) as s:
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, IncompatiblePeer)
        assert "layers 3 of the prefill worker, 5 of the decode" in error.message
        assert "'mock' of the prefill worker, 'other' of the decode" in error.message


async def test_workers_without_a_transport_in_common_are_shown() -> None:
    async with (
        cluster(decode=0, kv_transports=["shm"]) as c,
        cluster(prefill=0, kv_transports=["grpc"]) as d,
        session(d.decode[0]) as s,
    ):
        error = await s.submit(generation(prompt(20)), c.prefill[0]).failed()
        assert isinstance(error, IncompatiblePeer)
        assert "the decode worker reads grpc 1, the prefill worker has shm 2" in error.message
        (pairing,) = (await status(d.decode[0])).kv_pairings
        assert (pairing.address, pairing.transport) == (c.prefill[0].address, "")
        assert list(pairing.downgrades) == [error.message]


async def test_a_full_prefill_worker_says_so() -> None:
    async with (
        cluster(decode=2, num_blocks=16, cost=CostModel(step_s=0.2)) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
    ):
        first = one.submit(generation(prompt(40), max_tokens=2), c.prefill[0])
        await eventually(lambda: c.prefill[0].runtime.engine.load().blocks.owned > 0)
        error = await two.submit(generation(prompt(40, 3), max_tokens=2), c.prefill[0]).failed()
        assert isinstance(error, PrefillFull) and c.prefill[0].address in error.message
        await first.finished()


async def test_a_full_decode_worker_says_so() -> None:
    async with cluster(num_blocks=16, cost=CostModel(step_s=0.3)) as c, session(c.decode[0]) as s:
        first = s.submit(generation(prompt(40), max_tokens=2), c.prefill[0])
        await eventually(lambda: c.decode[0].runtime.engine.load().blocks.owned > 0)
        second = s.submit(generation(prompt(40, 3), request_id="2", max_tokens=2), c.prefill[0])
        assert isinstance(await second.failed(), WorkerFull)
        await first.finished()


async def test_the_prefill_deadline() -> None:
    deadlines = replace(UNLIMITED, prefill=0.1)
    async with cluster(cost=CostModel(step_s=0.3)) as c, session(c.decode[0]) as s:
        for target in (c.prefill[0], None):
            asked = generation(prompt(20), request_id=str(target), deadlines=deadlines)
            error = await s.submit(asked, target).failed()
            assert isinstance(error, DeadlineExceeded) and "'prefill'" in error.message


async def test_the_transfer_deadline() -> None:
    gate = Gate()
    async with (
        kv_relay(gate, lambda: c.prefill[0].address) as address,
        cluster(kv_address=address) as c,
        session(c.decode[0]) as s,
    ):
        asked = generation(prompt(50), deadlines=replace(UNLIMITED, transfer=0.1))
        error = await s.submit(asked, c.prefill[0]).failed()
        assert isinstance(error, DeadlineExceeded) and "'transfer'" in error.message


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4])
async def test_cancelled_at_any_stage_frees_both_sides(delay: float) -> None:
    """Queued, computing, transferring, decoding: ``cluster`` checks the books at the end."""
    asked = [generation(prompt(50, i), request_id=str(i), max_tokens=40) for i in range(3)]
    async with cluster(num_blocks=128, cost=SLOW) as c, session(c.decode[0]) as s:
        streams = [s.submit(each, c.prefill[0]) for each in asked]
        await asyncio.sleep(delay)
        for stream in streams:
            s.cancel(stream)
        await c.settle()
        assert not any(stream.ended.done() for stream in streams)


async def test_cancelled_while_kv_is_held_up() -> None:
    gate = Gate()
    async with (
        kv_relay(gate, lambda: c.prefill[0].address) as address,
        cluster(kv_address=address) as c,
        session(c.decode[0]) as s,
    ):
        stream = s.submit(generation(prompt(50)), c.prefill[0])
        await gate.reached.wait()
        s.cancel(stream)
        await c.settle()
