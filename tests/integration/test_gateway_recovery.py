"""The one recovery path, and every deadline: no token lost, repeated or changed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import (
    BatonError,
    DecodeLost,
    DecodeSilent,
    Draining,
    KvOverflow,
    Preempted,
    PrefillDraining,
    PrefillLost,
    PrefillSilent,
    WorkerFull,
)
from baton.generation import AttemptKey
from baton.liveness import Liveness
from baton.v1 import worker_pb2
from gateway.breaker import FAILURES
from gateway.fleet import Health
from gateway.pace import AT_ONCE
from tests.fakes import (
    EOS,
    FakeSession,
    FakeWorker,
    Script,
    Submitted,
    answering,
    eventually,
    failing,
    ids,
    write_checkpoint,
)
from tests.gateways import Gateway, events, serving

PREFILL = (worker_pb2.ROLE_PREFILL,)
TEXT = "one two thrée four five six"
TOKENS = [*ids(TEXT), EOS]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(script: Script | None = None, **worker: Any) -> FakeWorker:
    return FakeWorker(script=script or answering(TEXT), local_prefill=True, **worker)


def breaking(*errors: BatonError | None, after: int = 5, text: str = TEXT) -> Script:
    """The n-th submit ends with the n-th error after some tokens (None closes the session);
    later ones go well."""
    left = list(errors)

    async def script(session: FakeSession, submitted: Submitted) -> None:
        if not left:
            await answering(text)(session, submitted)
            return
        start = len(submitted.generation.generated_ids)
        for index in range(start, start + after):
            session.tokens(submitted.key, index, [[*ids(text), EOS][index]])
        error = left.pop(0)
        if error is None:
            session.close()
        else:
            session.fail(submitted.key, error)

    return script


def ended_once(error: BatonError) -> Script:
    """The first session ends with that error after some tokens; later ones go well."""
    ended = False

    async def script(session: FakeSession, submitted: Submitted) -> None:
        nonlocal ended
        if ended:
            await answering(TEXT)(session, submitted)
        else:
            ended = True
            session.tokens(submitted.key, 0, TOKENS[:4])
            session.close(error)

    return script


async def streamed(gateway: Gateway, **body: Any) -> tuple[list[int], str, list[str]]:
    """Token ids, text and raw events of a stream."""
    data = await events(await gateway.complete(stream=True, return_token_ids=True, **body))
    chunks = [json.loads(line) for line in data if line != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    tokens = [i for choice in choices for i in choice.get("token_ids", [])]
    return tokens, "".join(choice["text"] for choice in choices), data


async def test_a_broken_session_goes_on_with_the_same_worker(checkpoint: Path) -> None:
    worker = colocated(breaking(None))
    other = colocated()
    other.blocks_free = 1  # never chosen while the first is there
    async with serving(checkpoint, [worker, other]) as gateway:
        tokens, text, data = await streamed(gateway)
        assert gateway.metric("baton_migrations_total", reason="decode_lost") == 1
    assert (tokens, text, data[-1]) == (TOKENS, TEXT, "[DONE]")
    first, second = (submitted.generation for submitted in worker.submits)
    assert second.generated_ids == tuple(TOKENS[:5])
    assert second.prompt_ids == first.prompt_ids
    assert (first.key.attempt, second.key.attempt) == (0, 1)
    assert first.key.request_id == second.key.request_id
    assert second.sampling == first.sampling


async def test_a_dead_decode_worker_is_replaced(checkpoint: Path) -> None:
    dying = colocated(answering(TEXT, stop_after=7), blocks_free=2000)
    other = colocated()
    async with serving(checkpoint, [dying, other]) as gateway:
        asking = asyncio.create_task(streamed(gateway))
        await gateway.until_generated(7)
        await dying.kill()
        tokens, text, _ = await asking
    assert (tokens, text) == (TOKENS, TEXT)
    assert other.submits[0].generation.generated_ids == tuple(TOKENS[:7])


async def test_a_silent_decode_worker_is_given_up_and_cannot_repeat(checkpoint: Path) -> None:
    stopped = colocated(answering(TEXT, stop_after=4), blocks_free=2000)
    other = colocated(answering(TEXT, pause=0.03))
    async with serving(checkpoint, [stopped, other]) as gateway:
        asking = asyncio.create_task(streamed(gateway))
        submitted = await stopped.submitted(1)
        await gateway.until_generated(4)
        stopped.silent = True
        await other.submitted(1)
        stopped.silent = False
        stopped.sessions[0].tokens(submitted.key, 4, TOKENS[4:9])
        tokens, text, _ = await asking
        await gateway.until_healthy(2)
    assert (tokens, text) == (TOKENS, TEXT)
    assert len(stopped.submits) == 1, "nobody asks it again while it says nothing"


async def test_a_silent_session_is_not_tried_again_while_there_are_others(
    checkpoint: Path,
) -> None:
    """Another three beats would pass in silence: unlike one that broke, it is likely to be so
    again. Its status is on another stream, and may tell so later, or not at all."""
    mute = colocated(answering(TEXT, stop_after=4), blocks_free=2000)
    other = colocated()
    async with serving(checkpoint, [mute, other]) as gateway:
        asking = asyncio.create_task(streamed(gateway))
        await gateway.until_generated(4)
        mute.mute = True
        tokens, text, _ = await asking
    assert (tokens, text) == (TOKENS, TEXT)
    assert len(mute.submits) == 1


async def test_a_deaf_worker_costs_no_more_beats_than_it_has_taken(checkpoint: Path) -> None:
    """It says that it heard nothing, of a session and then of the next, while its status stream
    goes on as ever: neither this stream goes there again nor the next, for a while."""

    async def hears_nothing(session: FakeSession, submitted: Submitted) -> None:
        session.tokens(submitted.key, 0, TOKENS[:4])
        await asyncio.sleep(0.8)  # three beats of the gateway's
        session.close(DecodeSilent("nothing heard"))

    deaf = colocated(hears_nothing, blocks_free=2000)
    other = colocated()
    async with serving(checkpoint, [deaf, other], retry_budget=20.0) as gateway:
        tokens, text, _ = await streamed(gateway)
        await streamed(gateway)
        assert [member.health for member in gateway.service.registry.members] == [
            Health.HEALTHY
        ] * 2
    assert (tokens, text) == (TOKENS, TEXT)
    assert len(deaf.submits) == 1
    assert other.submits[0].generation.generated_ids == tuple(TOKENS[:4])


async def test_a_gateway_that_was_stopped_itself_blames_nobody(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Liveness, "steady", False)
    worker = colocated(ended_once(DecodeSilent("nothing heard")), blocks_free=2000)
    other = colocated()
    async with serving(checkpoint, [worker, other]) as gateway:
        tokens, _, _ = await streamed(gateway)
    assert tokens == TOKENS
    assert (len(worker.submits), other.submits) == (2, [])


async def test_stale_tokens_are_dropped_counted_and_answered(checkpoint: Path) -> None:
    stale = AttemptKey("nobody's", 3)

    async def script(session: FakeSession, submitted: Submitted) -> None:
        session.tokens(stale, 0, [1, 2])
        session.tokens(stale, 2, [3])
        await answering(TEXT)(session, submitted)

    worker = colocated(script)
    async with serving(checkpoint, [worker]) as gateway:
        tokens, _, _ = await streamed(gateway)
        assert await worker.cancelled() == stale
        assert gateway.metric("baton_stale_tokens_total") == 3
    assert tokens == TOKENS
    assert worker.cancels == [stale]


@pytest.mark.parametrize("index", [2, 4, 7])
async def test_tokens_out_of_order_are_never_sent(checkpoint: Path, index: int) -> None:
    good = answering(TEXT)

    async def script(session: FakeSession, submitted: Submitted) -> None:
        if submitted.key.attempt == 0:
            session.tokens(submitted.key, 0, TOKENS[:5])
            session.tokens(submitted.key, index, [0, 0])
        else:
            await good(session, submitted)

    worker = colocated(script)
    async with serving(checkpoint, [worker]) as gateway:
        tokens, _, _ = await streamed(gateway)
        assert gateway.metric("baton_stale_tokens_total") == 2
    assert tokens == TOKENS
    assert worker.cancels == [worker.submits[0].key]
    assert worker.submits[1].generation.generated_ids == tuple(TOKENS[:5])


async def test_preempted_goes_back_to_the_same_worker(checkpoint: Path) -> None:
    worker = colocated(breaking(Preempted("older goes first"), Preempted("again")))
    other = colocated()
    other.blocks_free = 1
    async with serving(checkpoint, [worker, other]) as gateway:
        tokens, _, _ = await streamed(gateway)
        assert gateway.metric("baton_migrations_total", reason="preempted") == 2
    assert tokens == TOKENS
    assert [len(s.generation.generated_ids) for s in worker.submits] == [0, 5, 10]


async def test_draining_goes_elsewhere(checkpoint: Path) -> None:
    leaving = colocated(breaking(Draining("leaving"), after=3), blocks_free=2000)
    other = colocated()
    async with serving(checkpoint, [leaving, other]) as gateway:
        tokens, _, _ = await streamed(gateway)
    assert tokens == TOKENS
    assert len(leaving.submits) == len(other.submits) == 1


async def test_a_lost_prefill_worker_is_replaced_then_done_without(checkpoint: Path) -> None:
    decode = FakeWorker(script=breaking(PrefillLost("gone"), PrefillLost("gone too"), after=0))
    prefills = [FakeWorker(roles=PREFILL), FakeWorker(roles=PREFILL)]
    async with serving(checkpoint, [decode, *prefills]) as gateway:
        answer = await gateway.complete()
    assert answer.status_code == 200
    used = [submitted.prefill_instance_id for submitted in decode.submits]
    assert sorted(used[:2]) == sorted(prefill.instance_id for prefill in prefills)
    assert used[2] == ""


async def test_a_deaf_prefill_worker_costs_its_beats_once(checkpoint: Path) -> None:
    """Its status stream goes on as ever: whoever comes next is not sent there for a while."""

    async def script(session: FakeSession, submitted: Submitted) -> None:
        if submitted.prefill_instance_id == deaf.instance_id:
            session.fail(submitted.key, PrefillSilent("nothing heard"))
        else:
            await answering(TEXT)(session, submitted)

    decode, deaf = FakeWorker(script=script), FakeWorker(roles=PREFILL)
    async with serving(checkpoint, [decode, deaf]) as gateway:
        assert (await gateway.complete()).status_code == 200
        worker = gateway.service.registry.roster.instance(deaf.instance_id)
        assert worker and worker.breaker.refuses
        assert gateway.metric("baton_migrations_total", reason="prefill_silent") == 1


async def test_a_prefill_worker_that_drains_is_not_blamed(checkpoint: Path) -> None:
    async def script(session: FakeSession, submitted: Submitted) -> None:
        if submitted.prefill_instance_id:
            session.fail(submitted.key, PrefillDraining("leaving"))
        else:
            await answering(TEXT)(session, submitted)

    decode = FakeWorker(script=script)
    prefill = FakeWorker(roles=PREFILL)
    async with serving(checkpoint, [decode, prefill]) as gateway:
        for _ in range(FAILURES):
            answer = await gateway.complete()
            assert answer.status_code == 200
        worker = gateway.service.registry.roster.instance(prefill.instance_id)
        assert worker and not worker.breaker.refuses
    used = [submitted.prefill_instance_id for submitted in decode.submits]
    assert used == [prefill.instance_id, ""] * FAILURES


async def test_the_last_token_before_a_loss_ends_the_answer(checkpoint: Path) -> None:
    worker = colocated(breaking(None, after=len(TOKENS)))
    async with serving(checkpoint, [worker]) as gateway:
        tokens, text, data = await streamed(gateway)
    assert (tokens, text, data[-1]) == (TOKENS, TEXT, "[DONE]")
    assert len(worker.submits) == 1


async def test_what_cannot_be_mended_is_told_in_the_stream(checkpoint: Path) -> None:
    worker = colocated(breaking(KvOverflow("layer 3: 1e9")))
    async with serving(checkpoint, [worker]) as gateway:
        tokens, _, data = await streamed(gateway)
        await eventually(lambda: gateway.metric("baton_requests_total", code="422") == 1)
    assert tokens == TOKENS[:5]
    assert json.loads(data[-1])["error"]["code"] == "kv_overflow"
    assert len(worker.submits) == 1


async def test_the_retry_budget_ends_in_a_clear_error(checkpoint: Path) -> None:
    worker = colocated(failing(DecodeLost("broken engine")))
    async with serving(checkpoint, [worker], retry_budget=0.3) as gateway:
        answer = await gateway.complete()
    assert answer.status_code == 502
    message = answer.json()["error"]["message"]
    assert "gave up after" in message
    assert "0.3 s" in message
    assert "broken engine" in message


async def test_no_worker_in_mid_stream_waits_for_one(checkpoint: Path) -> None:
    dying = colocated(answering(TEXT, stop_after=7))
    async with serving(checkpoint, [dying]) as gateway:
        asking = asyncio.create_task(streamed(gateway))
        await gateway.until_generated(7)
        await dying.kill()
        await asyncio.sleep(0.2)
        async with colocated(port=dying.port) as restarted:
            tokens, text, _ = await asking
            assert restarted.submits[0].generation.generated_ids == tuple(TOKENS[:7])
    assert (tokens, text) == (TOKENS, TEXT)


async def test_full_workers_are_not_hammered_and_the_oldest_goes_first(checkpoint: Path) -> None:
    full = True

    async def script(session: FakeSession, submitted: Submitted) -> None:
        if full:
            session.fail(submitted.key, WorkerFull("0 blocks free, 1 needed"))
        else:
            await answering(TEXT)(session, submitted)

    worker = colocated(script, beat=0.1)
    async with serving(checkpoint, [worker]) as gateway:
        asking = []
        for number in range(5):
            asking.append(asyncio.create_task(gateway.complete(prompt=[number])))
            await eventually(lambda: gateway.metric("baton_queue_tokens") == len(asking))
        reports, tries = worker.reports, len(worker.submits)
        await eventually(lambda: worker.reports >= reports + 5)
        refused = len(worker.submits)
        news = worker.reports - reports + 1
        assert refused - tries <= 2 * news, "a try or two per report, not one per request"
        full = False
        assert {(await answer).status_code for answer in asking} == {200}
    served = [submitted.generation.prompt_ids[0] for submitted in worker.submits[refused:]]
    assert served == sorted(served)


async def test_room_is_counted_before_the_worker_reports_it(checkpoint: Path) -> None:
    worker = colocated(answering(TEXT, pause=0.01), blocks_free=4, beat=30)
    async with serving(checkpoint, [worker], heartbeat_interval=20) as gateway:
        answers = await asyncio.gather(*(gateway.complete(prompt=[1] * 20) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert gateway.metric("baton_migrations_total", reason="worker_full") == 0


async def test_queue_deadline(checkpoint: Path) -> None:
    worker = colocated(blocks_free=0)
    async with serving(checkpoint, [worker], queue_timeout=0.2) as gateway:
        answer = await gateway.complete()
    assert answer.status_code == 504
    assert "phase 'queue': 0.2 s" in answer.json()["error"]["message"]
    assert worker.submits == []


@pytest.mark.parametrize("phase", ["first_token", "total"])
async def test_deadlines_before_the_first_token(checkpoint: Path, phase: str) -> None:
    worker = colocated(answering(TEXT, stop_after=0))
    async with serving(checkpoint, [worker], **{f"{phase}_timeout": 0.2}) as gateway:
        answer = await gateway.complete(stream=True)
        assert await worker.cancelled() == worker.submits[0].key
    assert answer.status_code == 504
    assert f"phase '{phase}': 0.2 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("phase", ["inter_token", "total"])
async def test_deadlines_in_mid_stream(checkpoint: Path, phase: str) -> None:
    worker = colocated(answering(TEXT, stop_after=3))
    async with serving(checkpoint, [worker], **{f"{phase}_timeout": 0.4}) as gateway:
        tokens, _, data = await streamed(gateway)
        assert await worker.cancelled() == worker.submits[0].key
    assert tokens == TOKENS[:3]
    assert f"phase '{phase}': 0.4 s" in json.loads(data[-1])["error"]["message"]


async def test_remaining_time_is_sent_with_every_attempt(checkpoint: Path) -> None:
    worker = colocated(breaking(None))
    async with serving(checkpoint, [worker], total_timeout=50) as gateway:
        await streamed(gateway)
    first, second = (submitted.generation.deadlines for submitted in worker.submits)
    assert second.total < first.total <= 50


async def test_room_is_kept_for_replays_that_are_yet_to_come(checkpoint: Path) -> None:
    """There is room for those streams alone: new work does not get what their KV is cached in."""
    streams, reset = AT_ONCE + 4, asyncio.Event()

    async def script(session: FakeSession, submitted: Submitted) -> None:
        if not reset.is_set():
            await answering(TEXT, stop_after=5)(session, submitted)
        await asyncio.sleep(0.05)
        await answering(TEXT)(session, submitted)

    worker = colocated(script, blocks_free=3 * streams, beat=30)
    async with serving(checkpoint, [worker], heartbeat_interval=20) as gateway:
        begun = [asyncio.create_task(streamed(gateway, prompt=[1] * 40)) for _ in range(streams)]
        await worker.submitted(streams)
        await gateway.until_generated(5 * streams)
        waiting = [asyncio.create_task(streamed(gateway, prompt=[2] * 40)) for _ in range(3)]
        await asyncio.sleep(0.2)
        assert len(worker.submits) == streams
        reset.set()
        worker.sessions[0].close()
        for answer in (*begun, *waiting):
            tokens, _, _ = await answer
            assert tokens == TOKENS
        [member] = gateway.service.registry.members
        assert member.worker and member.worker.room_blocks == 3 * streams
    again = [len(s.generation.generated_ids) for s in worker.submits[streams:]]
    assert again == [5] * streams + [0] * len(waiting)


async def test_replays_come_back_a_few_at_a_time_and_the_oldest_first(checkpoint: Path) -> None:
    streams, held, most = 60, 0, 0
    reset = False

    async def script(session: FakeSession, submitted: Submitted) -> None:
        nonlocal held, most
        if not reset:
            await answering(TEXT, stop_after=3)(session, submitted)
        held += 1
        most = max(most, held)
        await eventually(lambda: most >= AT_ONCE)
        await asyncio.sleep(0.02)
        held -= 1
        await answering(TEXT)(session, submitted)

    worker = colocated(script, blocks_free=10_000)
    async with serving(checkpoint, [worker]) as gateway:
        asking = [
            asyncio.create_task(streamed(gateway, prompt=[number])) for number in range(streams)
        ]
        await gateway.until_generated(3 * streams)
        reset = True
        worker.sessions[0].close()
        for answer in asking:
            tokens, _, _ = await answer
            assert tokens == TOKENS
        assert gateway.metric("baton_migrations_total", reason="decode_lost") == streams
    assert most == AT_ONCE
    first, again = worker.submits[:streams], worker.submits[streams:]
    assert [s.key.request_id for s in again] == [s.key.request_id for s in first]


async def test_who_waits_for_a_worker_goes_on_as_soon_as_one_is_there(checkpoint: Path) -> None:
    """Not only after pauses that have grown long."""
    dying = colocated(answering(TEXT, stop_after=7))
    async with serving(
        checkpoint, [dying], retry_initial=60, retry_max=60, retry_budget=60
    ) as gateway:
        asking = asyncio.create_task(streamed(gateway))
        await gateway.until_generated(7)
        await dying.kill()
        await asyncio.sleep(0.3)
        async with colocated(port=dying.port):
            await gateway.until_healthy(1)
            async with asyncio.timeout(20.0):
                tokens, _, _ = await asking
    assert tokens == TOKENS
