"""Scheduler: what goes into a step, and who gets memory."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import (
    BatonError,
    ContextLengthExceeded,
    Draining,
    InvalidRequest,
    KvOverflow,
    Preempted,
    WorkerFull,
)
from baton.generation import FinishReason
from baton.identity import Role
from baton.sampling import SamplingSpec
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.events import ChunkComputed, SequenceFailed, SequencePreempted, TokenSampled
from model.engine.plan import StepPlan, StepResult
from model.engine.scheduler import Scheduler
from model.engine.sequence import SequenceRequest
from model.engine.settings import SchedulerSettings
from model.engine.totals import Totals

SIZE = 4
TOKEN = 7
EOS = 2


class Bench(Scheduler):
    """A scheduler whose "model" answers every sample with TOKEN, and checks its books."""

    def __init__(self, num_blocks: int = 16, **limits: Any) -> None:
        given: dict[str, Any] = {"max_model_len": 100, "chunk_tokens": 4, "max_tokens_per_step": 10}
        given |= {"max_running": 4, "prefill_order": "fcfs"} | limits
        self.pool = BlockPool(num_blocks)
        self.now = 0.0
        settings = SchedulerSettings(block_size=SIZE, **given)
        prefix = PrefixCache(self.pool, SIZE, "bench")
        super().__init__(settings, self.pool, prefix, lambda: self.now)

    def submit(self, prompt: int | tuple[int, ...], most: int = 8, **rest: Any) -> int:
        """Add a prompt, given or of so many tokens that no other prompt begins with."""
        if isinstance(prompt, int):
            prompt = tuple(1000 * self._next_seq_id + i for i in range(prompt))
        spec = SamplingSpec(max_tokens=most, eos_ids=(EOS,))
        return self.add(SequenceRequest(prompt_ids=prompt, spec=spec, **rest)).seq_id

    def step(
        self, tokens: dict[int, int] | None = None, errors: dict[int, BatonError] | None = None
    ) -> StepPlan:
        plan = self.plan()
        assert self.check() == []
        if plan.slices:
            sampled = {s.seq_id: TOKEN for s in plan.slices if s.sample is not None}
            result = StepResult(plan.step, sampled | (tokens or {}), errors or {}, compute_s=1.0)
            self.commit(result)
        assert self.check() == []
        return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    return [(s.seq_id, s.start, s.end, s.sample is not None) for s in plan.slices]


# -- what a step holds ---------------------------------------------------------------------


def test_a_prompt_runs_in_chunks_and_samples_at_its_end() -> None:
    bench = Bench()
    seq = bench.submit(10)
    assert [shape(bench.step()) for _ in range(4)] == [
        [(seq, 0, 4, False)],
        [(seq, 4, 8, False)],
        [(seq, 8, 10, True)],
        [(seq, 10, 11, True)],
    ]


def test_chunks_are_told_of_where_somebody_asked_and_all_tokens_counted() -> None:
    bench = Bench()
    prompt = tuple(range(10, 20))
    for tell in (True, False):
        seq = bench.submit(prompt, most=2, tell=tell)
        while bench.step().slices:
            pass
        told = [e.end for e in bench.take_events() if isinstance(e, ChunkComputed)]
        assert told == ([4, 8] if tell else []), seq
    # The second found two blocks, and computed the rest.
    assert bench.totals == Totals(cache_hits=8, prompt=10 + 2, generated=4)


def test_decodes_go_first_and_prompts_share_the_rest_first_come() -> None:
    bench = Bench()
    decoding = bench.submit(1)
    bench.step()
    first, second, third = bench.submit(9), bench.submit(9), bench.submit(9)
    assert shape(bench.step()) == [
        (decoding, 1, 2, True),
        (first, 0, 4, False),
        (second, 0, 4, False),
        (third, 0, 1, False),  # 10 tokens a step in all
    ]
    assert bench.queued_tokens == 5 + 5 + 8


def test_priority_goes_before_order_of_arrival() -> None:
    bench = Bench(max_tokens_per_step=5)
    normal, urgent = bench.submit(4), bench.submit(4, priority=1)
    assert [s.seq_id for s in bench.step().slices] == [urgent, normal]


def test_max_running_bounds_the_slices_of_a_step() -> None:
    bench = Bench(max_running=2)
    for _ in range(3):
        bench.submit(2, keep=True)
    assert len(bench.step().slices) == 2
    assert len(bench.step().slices) == 1


def test_a_replay_computes_generated_ids_as_well() -> None:
    bench = Bench()
    bench.submit((1, 2, 3), generated_ids=(4, 5), most=4)
    (part,) = bench.plan().slices
    assert tuple(part.token_ids) == (1, 2, 3, 4)
    assert part.sample is None
    bench.commit(StepResult(1, {}))
    bench.step()
    bench.step()
    ends = [(e.index, e.finish_reason) for e in bench.take_events() if isinstance(e, TokenSampled)]
    assert ends == [(2, None), (3, FinishReason.LENGTH)]


# -- how sequences end ---------------------------------------------------------------------


def test_ends_at_max_tokens_or_eos() -> None:
    bench = Bench()
    long, short = bench.submit(2, most=3), bench.submit(2, most=3)
    bench.step()
    bench.step({short: EOS})
    bench.step()
    reasons = {e.seq_id: e.finish_reason for e in bench.take_events() if e.finish_reason}
    assert reasons == {long: FinishReason.LENGTH, short: FinishReason.STOP}
    assert bench.live == 0 and bench.pool.counts().owned == 0


def test_ignore_eos() -> None:
    bench = Bench()
    spec = SamplingSpec(max_tokens=2, eos_ids=(EOS,), ignore_eos=True)
    seq = bench.add(SequenceRequest(prompt_ids=(1,), spec=spec)).seq_id
    bench.step({seq: EOS})
    assert [e.finish_reason for e in bench.take_events()] == [None]


def test_a_kept_sequence_stays_owned_after_its_one_token() -> None:
    bench = Bench()
    seq = bench.submit(6, keep=True, export=True)
    while bench.step().slices:
        pass
    (event,) = bench.take_events()
    assert isinstance(event, TokenSampled) and event.finish_reason is None
    assert event.timings is not None and event.timings.prefill_s == 2.0
    assert bench.pool.counts().owned == 2
    bench.cancel(seq)
    assert bench.pool.counts().owned == 0


def test_a_failing_sequence_ends_alone() -> None:
    bench = Bench()
    bad, good = bench.submit(2), bench.submit(2)
    bench.step(errors={bad: KvOverflow("layer 3 holds 7e4")})
    failed, sampled = bench.take_events()
    assert isinstance(failed, SequenceFailed) and failed.seq_id == bad
    assert isinstance(failed.error, KvOverflow)
    assert isinstance(sampled, TokenSampled) and sampled.seq_id == good
    assert bench.live == 1


def test_a_runner_that_samples_nothing_is_an_error() -> None:
    bench = Bench()
    bench.submit(2)
    bench.commit(StepResult(bench.plan().step, {}))
    (event,) = bench.take_events()
    assert isinstance(event, SequenceFailed) and "sampled nothing" in event.error.message


def test_timings() -> None:
    bench = Bench()
    bench.submit(6, most=3)
    bench.now = 5.0
    while bench.step().slices:
        bench.now += 1
    first, _, last = [e.timings for e in bench.take_events() if isinstance(e, TokenSampled)]
    assert first is not None and last is not None
    assert (first.queued_s, first.prefill_s, first.decode_s, first.steps) == (5.0, 2.0, 0.0, 2)
    assert (last.queued_s, last.prefill_s, last.decode_s, last.steps) == (5.0, 2.0, 2.0, 4)


# -- admission -----------------------------------------------------------------------------


def test_refuses_what_can_never_fit_naming_both_numbers() -> None:
    bench = Bench(num_blocks=4)
    with pytest.raises(ContextLengthExceeded, match=r"make 108.*is 100"):
        bench.submit(100)
    with pytest.raises(ContextLengthExceeded, match=r"room for 17 tokens.*room for 16"):
        bench.submit(9)
    bench.submit(8)
    bench.cancel(1)
    bench.submit(16, keep=True)  # needs no room for what others generate


def test_refuses_what_does_not_fit_now() -> None:
    bench = Bench(num_blocks=4, max_running=2)
    first = bench.submit(9, most=1)
    with pytest.raises(WorkerFull, match=r"only 4 tokens"):
        bench.submit(5, most=1)
    bench.submit(4, most=1)
    with pytest.raises(WorkerFull, match=r"max_running"):
        bench.submit(1, most=1)
    bench.cancel(first)
    bench.submit(5, most=1)
    assert bench.check() == []


def test_a_refused_request_keeps_nothing() -> None:
    bench = Bench(num_blocks=4)
    prompt = tuple(range(4))
    bench.submit((*prompt, 99), most=1)
    bench.step()
    hit = SequenceRequest(prompt_ids=(*prompt, *range(50, 62)), spec=SamplingSpec(), keep=True)
    with pytest.raises(WorkerFull):
        bench.add(hit)
    assert bench.check() == []


def test_refuses_nonsense() -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        Bench().submit(())
    with pytest.raises(InvalidRequest, match="generated already"):
        Bench().submit((1,), most=2, generated_ids=(1, 2))
    with pytest.raises(ValueError, match="neither keeps"):
        Bench().submit((1,), receive=True, keep=True)
    with pytest.raises(ValueError, match="--max-step-tokens is 4"):
        Bench(max_tokens_per_step=4)
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        Bench(chunk_tokens=0)


def test_draining_refuses_and_hands_back() -> None:
    bench = Bench()
    running, kept = bench.submit(2), bench.submit(2, keep=True)
    bench.step()
    bench.take_events()
    bench.intake.draining = True
    with pytest.raises(Draining):
        bench.submit(1)
    assert bench.end_all(Draining("leaving")) == 1
    (event,) = bench.take_events()
    assert isinstance(event, SequenceFailed) and event.seq_id == running
    bench.cancel(kept)
    assert bench.live == 0


def test_a_worker_of_both_roles_has_a_quota_for_each() -> None:
    bench = Bench(num_blocks=8, keep_blocks=3)
    with pytest.raises(WorkerFull, match=r"room for 12"):
        bench.submit(13, keep=True)
    with pytest.raises(WorkerFull, match=r"room for 20"):
        bench.submit(13, most=8)
    with pytest.raises(ContextLengthExceeded, match=r"room for 32"):
        bench.submit(33, keep=True)
    assert bench.intake.longest == 12 and bench.prefill_room == 3
    bench.submit(9, keep=True)
    with pytest.raises(WorkerFull):
        bench.submit(1, keep=True)
    assert bench.prefill_room == 0
    bench.submit(12, most=8)


def test_roles_come_and_go_with_their_quota() -> None:
    bench = Bench(num_blocks=8, keep_blocks=3)
    bench.intake.take_roles([Role.DECODE])
    with pytest.raises(Draining, match="does not prefill now"):
        bench.submit(1, keep=True)
    decoding = bench.submit(20, most=8)
    assert bench.intake.longest == 32 and bench.prefill_room is None
    bench.intake.take_roles(tuple(Role))
    kept = bench.submit(8, keep=True)
    with pytest.raises(WorkerFull):
        bench.submit(8, keep=True)
    bench.intake.take_roles([Role.PREFILL])
    with pytest.raises(Draining, match="does not decode now"):
        bench.submit(1)
    assert bench.live_of(Role.DECODE) == bench.live_of(Role.PREFILL) == 1, "what runs stays"
    assert bench.end_all(Draining("it goes"), [Role.DECODE]) == 1
    (event,) = bench.take_events()
    assert event.seq_id == decoding
    bench.submit(20, keep=True)
    bench.cancel(kept)
    bench.step()


# -- prefix hits ---------------------------------------------------------------------------


def test_a_hit_leaves_one_token_to_compute_here_but_none_to_receive() -> None:
    bench = Bench()
    prompt = tuple(range(8))
    bench.submit(prompt, most=1)
    while bench.step().slices:
        pass
    spec = SamplingSpec(max_tokens=8)
    here = bench.add(SequenceRequest(prompt_ids=prompt, spec=spec))
    received = bench.add(SequenceRequest(prompt_ids=prompt, spec=spec, receive=True))
    assert (here.hit_tokens, received.hit_tokens) == (4, 8)
    assert received.queued_tokens == 4


# -- received KV ---------------------------------------------------------------------------


def test_received_kv_joins_the_batch_and_is_shared_from_then_on() -> None:
    bench = Bench()
    prompt = tuple(range(8))
    seq = bench.submit(prompt, receive=True)
    assert bench.plan().slices == () and bench.waiting == 1
    assert bench.submit(prompt, receive=True, most=1) and bench.pool.counts().cached == 0
    assert bench.activate(seq, TOKEN) is None
    assert shape(bench.step()) == [(seq, 8, 9, True)]
    assert bench.take_events()[0].index == 1, "the first token came from elsewhere"
    third = SequenceRequest(prompt_ids=prompt, spec=SamplingSpec(), receive=True)
    assert bench.add(third).hit_tokens == 8


def test_activation_may_finish() -> None:
    bench = Bench()
    by_eos, by_length = bench.submit(5, receive=True), bench.submit(5, most=1, receive=True)
    assert bench.activate(by_eos, EOS) is FinishReason.STOP
    assert bench.activate(by_length, TOKEN) is FinishReason.LENGTH
    assert bench.activate(by_length, TOKEN) is None, "an ended sequence is left alone"
    assert bench.live == 0 and bench.pool.counts().cached == 2
    with pytest.raises(RuntimeError, match="does not wait for KV"):
        bench.activate(bench.submit(3), TOKEN)


def test_compute_here_reuses_untouched_blocks() -> None:
    bench = Bench()
    seq = bench.submit(6, receive=True)
    bench.compute_here(seq)
    bench.compute_here(seq)
    assert shape(bench.step()) == [(seq, 0, 4, False)]


def test_compute_here_leaves_blocks_under_transfer_alone() -> None:
    bench = Bench(num_blocks=5)
    seq = bench.submit(6, most=1, receive=True)
    hold = bench.hold(seq)
    bench.compute_here(seq)
    assert bench.pool.counts().quarantined == 2
    (part,) = bench.step().slices
    assert not set(part.block_table) & set(hold.blocks)
    bench.unhold(hold)
    bench.unhold(hold)
    assert bench.pool.counts().quarantined == 0
    other = bench.submit(6, most=1, receive=True)
    bench.hold(other)
    with pytest.raises(WorkerFull):
        bench.compute_here(other)
    assert bench.check() == []


def test_compute_here_never_writes_a_shared_block() -> None:
    bench = Bench()
    prompt = tuple(range(8))
    bench.submit(prompt, most=1)
    while bench.step().slices:
        pass
    seq = bench.submit(prompt, receive=True)
    bench.compute_here(seq)
    assert shape(bench.step()) == [(seq, 4, 8, True)]


# -- cancel, hold, preempt -----------------------------------------------------------------


def test_cancel_in_mid_step_quarantines_until_it_commits() -> None:
    bench = Bench()
    seq = bench.submit(4)
    plan = bench.plan()
    bench.cancel(seq)
    bench.cancel(seq)
    assert bench.check() == []
    assert bench.pool.counts().quarantined == 1
    bench.commit(StepResult(plan.step, {seq: TOKEN}))
    assert bench.check() == [] and bench.take_events() == []
    assert bench.pool.counts().free == 16


def test_a_hold_outlives_its_sequence() -> None:
    bench = Bench()
    seq = bench.submit(6)
    hold = bench.hold(seq)
    bench.cancel(seq)
    assert bench.pool.counts().quarantined == 2
    with pytest.raises(Preempted):
        bench.hold(seq)
    bench.unhold(hold)
    assert bench.pool.counts().free == 16 and bench.check() == []


def preempted(bench: Bench) -> list[int]:
    return [e.seq_id for e in bench.take_events() if isinstance(e, SequencePreempted)]


def test_the_youngest_makes_room_and_its_blocks_stay_cached() -> None:
    bench = Bench(num_blocks=4)
    old, young = bench.submit(4), bench.submit(4)
    bench.step()
    bench.step()  # both take their second block: the pool is used up
    for _ in range(4):
        bench.step()
    assert preempted(bench) == [young] and bench.totals.preemptions == 1
    assert bench.pool.counts().owned == 3 and bench.pool.counts().cached == 1
    while bench.step().slices:
        pass
    assert bench.live == 0 and old


def test_the_last_block_goes_to_the_oldest() -> None:
    bench = Bench(num_blocks=4)
    first, second, gone = (bench.submit(4, receive=True) for _ in range(3))
    for seq in (first, second, gone):
        bench.hold(seq)
    bench.cancel(gone)
    bench.activate(second, TOKEN)
    bench.activate(first, TOKEN)
    assert [s.seq_id for s in bench.step().slices] == [first]


def test_one_under_transfer_is_spared_if_another_will_do() -> None:
    bench = Bench(num_blocks=5)
    bench.submit(4, most=12)
    middle, young = bench.submit(4), bench.submit(4, receive=True)
    bench.step()
    hold = bench.hold(young)
    for _ in range(5):
        bench.step()
    assert preempted(bench) == [middle]
    bench.unhold(hold)


def test_waits_for_quarantine_rather_than_preempting_a_transfer() -> None:
    bench = Bench(num_blocks=3)
    old = bench.submit(4)
    gone, young = bench.submit(4, most=1, receive=True), bench.submit(4, most=1, receive=True)
    bench.step()
    holds = [bench.hold(gone), bench.hold(young)]
    bench.cancel(gone)
    assert bench.step().slices == (), "it sits out until the quarantined block comes back"
    assert preempted(bench) == []
    bench.unhold(holds[0])
    with pytest.raises(WorkerFull):
        bench.submit(1, most=1)  # that block is not for newcomers
    assert [s.seq_id for s in bench.step().slices] == [old]
    for _ in range(4):
        bench.step()
    assert preempted(bench) == [young], "with nothing quarantined, a transfer must give way"
    assert bench.step().slices == ()
    bench.unhold(holds[1])
    while bench.step().slices:
        pass
    assert bench.live == 0
