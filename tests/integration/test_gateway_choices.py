"""Several choices of a request, as its client sees them and as the workers are asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError, KvOverflow, Preempted, WorkerFull
from baton.generation import FinishReason, Timings
from tests.fakes import (
    EOS,
    FakeSession,
    FakeWorker,
    Script,
    Submitted,
    answering,
    eventually,
    ids,
    write_checkpoint,
)
from tests.gateways import Gateway, events, serving

TEXTS = ["one two three", "four five six", "seven eight"]
LEN = 3


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(script: Script, **worker: Any) -> FakeWorker:
    return FakeWorker(script=script, local_prefill=True, **worker)


async def each_its_own(session: FakeSession, submitted: Submitted) -> None:
    """Choice i answers with the i-th text."""
    await answering(TEXTS[submitted.key.choice_index])(session, submitted)


def failing_once(choice: int | None, error: BatonError, after: int) -> Script:
    """The first attempt at a choice (None: at every one) ends early after some tokens."""

    async def script(session: FakeSession, submitted: Submitted) -> None:
        key = submitted.key
        if key.attempt or choice not in (None, key.choice_index):
            await each_its_own(session, submitted)
            return
        if after:
            session.tokens(key, 0, ids(TEXTS[key.choice_index])[:after])
        session.fail(key, error)

    return script


async def streamed(gateway: Gateway, **body: Any) -> tuple[list[str], dict[str, Any], list[Any]]:
    """Each choice's text, the usage, and all chunks."""
    data = await events(
        await gateway.complete(stream=True, stream_options={"include_usage": True}, n=LEN, **body)
    )
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    texts = [""] * LEN
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts, chunks[-1]["usage"], chunks


def completion_tokens() -> int:
    return sum(len(ids(text)) + 1 for text in TEXTS)


async def test_whole_and_streamed(checkpoint: Path) -> None:
    worker = colocated(each_its_own)
    async with serving(checkpoint, [worker]) as gateway:
        whole = (await gateway.complete(n=LEN)).json()
        texts, usage, chunks = await streamed(gateway)
        chat = await gateway.chat(n=LEN)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in whole["choices"]] == TEXTS == texts
    assert [c["message"]["content"] for c in chat.json()["choices"]] == TEXTS
    assert whole["usage"] == usage
    assert usage["prompt_tokens"] == 2, "once"
    assert usage["completion_tokens"] == completion_tokens()
    finishes = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(choice["index"] for choice in finishes) == [0, 1, 2]
    assert chunks[0]["baton"] and not any("baton" in chunk for chunk in chunks[1:])
    assert [s.generation.keys[-1].choice_index for s in worker.submits] == [2, 2, 2], "as one each"


async def test_a_worker_of_protocol_1_is_asked_for_one_at_a_time(checkpoint: Path) -> None:
    async def script(session: FakeSession, submitted: Submitted) -> None:
        timings = Timings(decode_cached_tokens=2)
        await answering(TEXTS[submitted.key.choice_index], timings=timings)(session, submitted)

    worker = colocated(script, protocol=1)
    async with serving(checkpoint, [worker]) as gateway:
        texts, usage, _ = await streamed(gateway)
    assert texts == TEXTS
    assert [s.generation.more_choices for s in worker.submits] == [(), (), ()]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}, "all it says is at the end"


async def test_a_stop_string_ends_its_choice_only(checkpoint: Path) -> None:
    async def script(session: FakeSession, submitted: Submitted) -> None:
        text = TEXTS[submitted.key.choice_index]
        await answering(text, pause=0.005)(session, submitted)

    worker = colocated(script)
    async with serving(checkpoint, [worker]) as gateway:
        texts, usage, _ = await streamed(gateway, stop="five")
    assert texts == [TEXTS[0], "four ", TEXTS[2]]
    assert [key.choice_index for key in worker.cancels] == [1]
    assert usage["completion_tokens"] == completion_tokens() - len(" six") - 1


async def test_a_lost_choice_is_placed_again_by_itself(checkpoint: Path) -> None:
    worker = colocated(failing_once(1, Preempted("gave way"), after=4))
    async with serving(checkpoint, [worker]) as gateway:
        texts, usage, _ = await streamed(gateway)
        assert gateway.metric("baton_migrations_total", reason="preempted") == 1
    assert texts == TEXTS
    assert usage["completion_tokens"] == completion_tokens()
    group, alone = (submitted.generation for submitted in worker.submits)
    assert group.more_choices == (1, 2)
    assert (alone.key.attempt, alone.key.choice_index, alone.more_choices) == (1, 1, ())
    assert alone.generated_ids == tuple(ids(TEXTS[1])[:4])


async def test_a_choice_without_a_first_token_is_placed_again_by_itself(checkpoint: Path) -> None:
    """As where the prefill worker draws the first token of one choice only."""
    worker = colocated(failing_once(2, Preempted("no first token"), after=0))
    async with serving(checkpoint, [worker]) as gateway:
        texts, _, _ = await streamed(gateway)
    assert texts == TEXTS
    assert [s.generation.more_choices for s in worker.submits] == [(1, 2), ()]


async def test_a_choice_that_parted_is_not_refused_for_being_late(checkpoint: Path) -> None:
    """By the worker's measure its prompt takes 100 s, of which it has 60 left. A request of its own
    would be told to come again; here the client has the others' tokens already."""
    full = asyncio.Event()

    async def script(session: FakeSession, submitted: Submitted) -> None:
        key = submitted.key
        if key.choice_index == LEN - 1 and not key.attempt:
            await full.wait()
            session.fail(key, Preempted("no first token"))
        else:
            await each_its_own(session, submitted)

    worker = colocated(script, prefill_us_per_token=1e6)
    async with serving(checkpoint, [worker]) as gateway:
        [place] = gateway.service.registry.roster.workers
        ask = streamed(gateway, prompt=[1] * 100, deadlines={"first_token": 60})
        asking = asyncio.create_task(ask)
        await worker.submitted(1)
        worker.blocks_free = 0
        await eventually(lambda: place.report.load.blocks_free == 0)
        behind = asyncio.create_task(gateway.complete())
        await eventually(lambda: gateway.metric("baton_queue_tokens") == 102)
        full.set()
        await eventually(lambda: gateway.metric("baton_queue_tokens") == 2)
        worker.blocks_free = 1000
        texts, _, _ = await asking
        assert (await behind).status_code == 200
    assert texts == TEXTS
    parted = [s.generation.key for s in worker.submits if s.generation.key.attempt]
    assert [(key.attempt, key.choice_index) for key in parted] == [(1, 2)]


async def test_a_full_worker_is_asked_for_all_again(checkpoint: Path) -> None:
    worker = colocated(failing_once(None, WorkerFull("no room"), after=0))
    async with serving(checkpoint, [worker]) as gateway:
        texts, _, _ = await streamed(gateway)
    assert texts == TEXTS
    again = [submitted.generation for submitted in worker.submits]
    assert [(g.key.attempt, g.more_choices) for g in again] == [(0, (1, 2)), (1, (1, 2))]


async def test_what_cannot_be_mended_in_one_choice_ends_the_request(checkpoint: Path) -> None:
    worker = colocated(failing_once(1, KvOverflow("layer 3"), after=0))
    async with serving(checkpoint, [worker]) as gateway:
        refused = await gateway.complete(n=LEN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "kv_overflow")


async def test_a_client_that_leaves_cancels_every_choice(checkpoint: Path) -> None:
    async def script(session: FakeSession, submitted: Submitted) -> None:
        await answering(TEXTS[0], stop_after=2)(session, submitted)

    worker = colocated(script)
    async with serving(checkpoint, [worker]) as gateway:
        asking = asyncio.create_task(gateway.complete(n=LEN))
        await gateway.until_generated(2 * LEN)
        asking.cancel()
        await eventually(lambda: len(worker.cancels) == LEN)
        [place] = gateway.service.registry.roster.workers
        assert {key.choice_index for key in worker.cancels} == {0, 1, 2}
        assert place.room_blocks <= place.all_blocks


async def test_a_pool_that_can_never_hold_all_choices(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(each_its_own, blocks_free=2)]) as gateway:
        refused = await gateway.complete(n=LEN)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "3 choices" in error["message"] and "pool has 2" in error["message"]
        assert (await gateway.complete(n=2, max_tokens=3)).status_code == 200


async def test_cached_tokens_are_those_of_the_first_attempt(checkpoint: Path) -> None:
    """Said with the first token, so that an answer that is cut short has them as well."""

    async def script(session: FakeSession, submitted: Submitted) -> None:
        key, answer = submitted.key, [*ids(TEXTS[0]), EOS]
        start = len(submitted.generation.generated_ids)
        session.tokens(key, start, answer[start : start + 4], 2 if key.attempt else 1)
        if not key.attempt:
            session.fail(key, Preempted("gave way"))
            return
        session.tokens(key, start + 4, answer[start + 4 :])
        timings = Timings(prefill_cached_tokens=2, decode_cached_tokens=2)
        session.finish(key, FinishReason.STOP, timings)

    worker = colocated(script)
    async with serving(checkpoint, [worker]) as gateway:
        _, usage, _ = await streamed(gateway)
        stopped = (await gateway.complete(stop="two")).json()
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert stopped["choices"][0]["text"] == "one "
    assert stopped["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
