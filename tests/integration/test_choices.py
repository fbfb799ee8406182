"""Several choices of one request: one prompt computed, one hand-off, and then each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError, Draining, Preempted, PrefillLost, WorkerFull
from baton.generation import Generation
from baton.v1 import prefill_pb2
from model.engine.mock_runner import CostModel
from model.engine.torch_runner import TorchRunner, load_runner
from model.sampling.sampler import sample
from tests.workers import (
    BLOCK,
    LAYOUT,
    SessionDouble,
    Stream,
    Worker,
    cluster,
    expected,
    generation,
    prompt,
    session,
    status,
)

SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 7, "choices": (0, 1, 2)}
SLOW = CostModel(step_s=0.01)


def streams(s: SessionDouble, asked: Generation) -> list[Stream]:
    return [s.streams[key] for key in asked.keys]


async def submitted(
    s: SessionDouble, asked: Generation, prefill: Worker | None = None
) -> list[Stream]:
    """What comes of each choice, once each has its first token."""
    s.submit(asked, prefill)
    for stream in streams(s, asked):
        await stream.progress.wait()
    return streams(s, asked)


async def hand_offs(decode: Worker) -> list[tuple[int, int]]:
    """How many were complete with each prefill worker, and their bytes."""
    return [(p.complete, p.bytes) for p in (await status(decode)).kv_pairings]


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, 61])
async def test_one_hand_off(length: int) -> None:
    asked = generation(prompt(length), **SEEDED)
    async with cluster() as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0])
        for part in asked.apart:
            stream = s.streams[part.key]
            assert await stream.finished() == expected(part)
            assert stream.timings.prefill_instance_id == c.prefill[0].instance_id
        blocks = -(-length // BLOCK) * LAYOUT.layers
        assert await hand_offs(c.decode[0]) == [(1, blocks * LAYOUT.block_bytes)]


@pytest.mark.parametrize("prefill", [0, 1])
async def test_every_token_comes_with_its_log_probabilities(prefill: int) -> None:
    """The first one's from the prefill worker, where there is one."""
    asked = generation(prompt(30), **SEEDED, logprobs=2)
    async with cluster(prefill=prefill) as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0] if prefill else None)
        for part in asked.apart:
            stream = s.streams[part.key]
            tokens = await stream.finished()
            assert tokens == expected(part)
            assert [told.logprob for told in stream.logprobs] == [-token / 64 for token in tokens]
            assert {len(told.top) for told in stream.logprobs} == {2}


@pytest.mark.parametrize("colocated", [True, False])
async def test_computed_where_it_is_decoded(colocated: bool) -> None:
    asked = generation(prompt(50), **SEEDED)
    async with cluster(prefill=0, local_prefill=colocated) as c, session(c.decode[0]) as s:
        s.submit(asked)
        for part in asked.apart:
            assert await s.streams[part.key].finished() == expected(part)


async def test_all_first_tokens_are_ahead_of_the_kv() -> None:
    """Not one KV block has been taken when they are here."""
    asked = generation(prompt(40), **SEEDED)
    async with cluster() as c, session(c.decode[0]) as s:
        held = c.decode[0].runtime.store.write
        gate = asyncio.Event()

        async def write(layer: int, blocks: Sequence[int], data: memoryview) -> None:
            await gate.wait()
            await held(layer, blocks, data)

        c.decode[0].runtime.store.write = write  # type: ignore[method-assign]
        first = await submitted(s, asked, c.prefill[0])
        assert [len(stream.token_ids) for stream in first] == [1, 1, 1]
        gate.set()
        for part in asked.apart:
            assert await s.streams[part.key].finished() == expected(part)


async def test_cached_tokens_are_those_that_nobody_computed() -> None:
    """Of three requests with one prompt: computed there, computed here, computed there again."""
    asked = generation(prompt(40), max_tokens=4, **SEEDED)
    async with cluster() as c, session(c.decode[0]) as s:
        for attempt, (prefill, cached) in enumerate(
            [(c.prefill[0], 0), (None, 36), (c.prefill[0], 36)]
        ):
            again = replace(asked, key=replace(asked.key, attempt=attempt))
            s.submit(again, prefill)
            for stream in streams(s, again):
                await stream.finished()
                assert stream.cached_tokens == cached


async def test_one_cancelled() -> None:
    asked = generation(prompt(30), max_tokens=60, **SEEDED)
    async with cluster(cost=SLOW) as c, session(c.decode[0]) as s:
        first, second, third = await submitted(s, asked, c.prefill[0])
        s.cancel(second)
        for stream, part in ((first, asked.apart[0]), (third, asked.apart[2])):
            assert await stream.finished() == expected(part)
        assert len(second.token_ids) < 60 and not second.ended.done()


async def test_one_cancelled_before_its_prompt_is_computed() -> None:
    asked = generation(prompt(200), **SEEDED)
    async with cluster(cost=SLOW) as c, session(c.decode[0]) as s:
        first = s.submit(asked, c.prefill[0])
        s.cancel(first)
        for part in asked.apart[1:]:
            assert await s.streams[part.key].finished() == expected(part)
        assert first.token_ids == []


async def test_all_cancelled() -> None:
    asked = generation(prompt(200), **SEEDED)
    async with cluster(cost=SLOW) as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0])
        for stream in streams(s, asked):
            s.cancel(stream)
        await c.settle()


async def test_choices_that_end_with_their_first_token() -> None:
    asked = generation(prompt(30), max_tokens=1, **SEEDED)
    async with cluster() as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0])
        for part in asked.apart:
            assert await s.streams[part.key].finished() == expected(part)


async def test_one_ends_with_its_first_token() -> None:
    """It ends at once, with the others' KV still to come."""
    asked = generation(prompt(30), **SEEDED)
    tokens = [expected(part) for part in asked.apart]
    assert len({t[0] for t in tokens}) == 3
    asked = replace(asked, sampling=replace(asked.sampling, eos_ids=(tokens[1][0],)))
    async with cluster() as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0])
        for part in asked.apart:
            assert await s.streams[part.key].finished() == expected(part)
        assert s.streams[asked.keys[1]].token_ids == tokens[1][:1]


async def test_a_lost_prefill_worker_ends_all() -> None:
    asked = generation(prompt(200), **SEEDED)
    async with cluster(cost=SLOW) as c, session(c.decode[0]) as s:
        s.submit(asked, c.prefill[0])
        await asyncio.sleep(0.05)
        await c.prefill[0].kill()
        for stream in streams(s, asked):
            assert isinstance(await stream.failed(), PrefillLost)


async def test_a_prefill_worker_that_draws_one_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of protocol 1 does: the other choices are to be placed again."""
    whole = prefill_pb2.FirstToken

    def one(**fields: Any) -> prefill_pb2.FirstToken:
        fields.pop("more_token_ids")
        return whole(**fields)

    monkeypatch.setattr(prefill_pb2, "FirstToken", one)
    asked = generation(prompt(30), **SEEDED)
    async with cluster() as c, session(c.decode[0]) as s:
        assert await s.submit(asked, c.prefill[0]).finished() == expected(asked)
        for stream in streams(s, asked)[1:]:
            assert isinstance(await stream.failed(), Preempted)


async def test_refused_as_one() -> None:
    async with cluster(num_blocks=16, cost=SLOW) as c, session(c.decode[0]) as s:
        too_many = generation(prompt(4), choices=range(17))
        s.submit(too_many, c.prefill[0])
        for stream in streams(s, too_many):
            assert "at most 16 sequences" in (await stream.failed()).message
        [big] = await submitted(s, generation(prompt(40), request_id="big", max_tokens=24))
        full = generation(prompt(8, 3), request_id="full", choices=range(8))
        s.submit(full, c.prefill[0])
        for stream in streams(s, full):
            assert isinstance(await stream.failed(), WorkerFull)
        await big.finished()
        assert await s.submit(replace(full, key=replace(full.key, attempt=1))).finished()
        twice = generation(prompt(4), request_id="twice", choices=(1, 1))
        s.submit(twice, c.prefill[0])
        assert "submitted twice" in (await s.streams[twice.key].failed()).message


# -- exactness, with a real model ----------------------------------------------------------------

LENGTHS = (31, 32, 45)
TOKENS = 40


def asked_of(length: int, temperature: float, choices: Sequence[int], attempt: int) -> Generation:
    ids = [(11 * i + length) % 256 for i in range(length)]
    return generation(
        ids,
        request_id=f"{length} {temperature}",
        attempt=attempt,
        choices=choices,
        max_tokens=TOKENS,
        temperature=temperature,
        seed=3,
        ignore_eos=True,
    )


@pytest.fixture(scope="module")
def torch_workers(tiny_llama: Path) -> Callable[..., Any]:
    """Clusters of real deterministic runners."""

    def runner(num_blocks: int) -> TorchRunner:
        return load_runner(
            tiny_llama,
            sampler=sample,
            num_blocks=num_blocks,
            block_size=16,
            threads=1,
            deterministic=True,
        )

    layout = runner(1).compatibility

    def make(_: object, num_blocks: int, **__: object) -> TorchRunner:
        return runner(num_blocks)

    def workers(**more: Any) -> Any:
        return cluster(layout=layout, make_runner=make, deterministic=True, **more)

    return workers


async def alone(s: SessionDouble, length: int, temperature: float) -> list[list[int]]:
    """Each choice by itself, computed where it is decoded, nothing cached."""
    found = []
    for choice in range(4):
        asked = asked_of(length, temperature, (choice,), attempt=choice)
        salted = replace(asked, cache_salt=bytes([choice]))
        found.append(await s.submit(salted).finished())
    return found


async def recovered(
    s: SessionDouble, stream: Stream, prefill: Worker | None, lost: list[BatonError]
) -> list[int]:
    """All tokens of a choice, placed again by itself as often as its attempt is lost."""
    tokens: list[int] = []
    while True:
        try:
            return tokens + await stream.finished()
        except BatonError as error:
            assert error.retryable, error
            lost.append(error)
        tokens += stream.token_ids
        asked = stream.asked
        key = replace(asked.key, attempt=asked.key.attempt + 1)
        asked = replace(asked, key=key, generated_ids=tuple(tokens), more_choices=())
        if isinstance(lost[-1], WorkerFull):
            await asyncio.sleep(0.01)
        stream = s.submit(asked, prefill)


async def test_bitwise_as_if_alone(torch_workers: Callable[..., Any]) -> None:
    cases = [(length, temperature) for length in LENGTHS for temperature in (0.0, 0.9)]
    async with torch_workers(prefill=0) as c, session(c.decode[0]) as s:
        wanted = {case: await alone(s, *case) for case in cases}
    assert len({tuple(t) for t in wanted[32, 0.9]}) == 4, "the choices differ"

    async def together(s: SessionDouble, prefill: Worker | None) -> list[BatonError]:
        lost: list[BatonError] = []

        async def all_of(case: tuple[int, float]) -> list[list[int]]:
            asked = asked_of(*case, range(4), attempt=100)
            s.submit(asked, prefill)
            each = (recovered(s, stream, prefill, lost) for stream in streams(s, asked))
            return list(await asyncio.gather(*each))

        found = await asyncio.gather(*(all_of(case) for case in cases))
        assert dict(zip(cases, found, strict=True)) == wanted
        return lost

    async with torch_workers(num_blocks=200, max_running=32) as c:
        async with session(c.decode[0]) as s:
            assert await together(s, c.prefill[0]) == [], "disaggregated"
        async with session(c.decode[0]) as s:
            assert await together(s, None) == [], "computed here, prefixes cached"
    async with torch_workers(num_blocks=20, max_running=32) as c, session(c.decode[0]) as s:
        lost = await together(s, c.prefill[0])
        assert any(isinstance(error, Preempted) for error in lost), "in a small pool"


async def test_bitwise_as_if_alone_after_a_loss(torch_workers: Callable[..., Any]) -> None:
    """The decode worker gives up its sequences in mid-stream; each choice goes on elsewhere."""
    asked = asked_of(45, 0.9, range(4), attempt=0)
    async with (
        torch_workers(decode=2) as c,
        session(c.decode[0]) as s,
        session(c.decode[1]) as other,
    ):
        wanted = await alone(other, 45, 0.9)
        first = await submitted(s, asked, c.prefill[0])
        c.decode[0].runtime.engine.drain(Draining("it leaves"))
        for stream in first:
            assert isinstance(await stream.failed(), Draining)
        assert all(0 < len(stream.token_ids) < TOKENS for stream in first)
        for stream, tokens in zip(first, wanted, strict=True):
            again = replace(
                stream.asked,
                key=replace(stream.asked.key, attempt=9),
                generated_ids=tuple(stream.token_ids),
            )
            rest = await other.submit(again, c.prefill[0]).finished()
            assert stream.token_ids + rest == tokens
