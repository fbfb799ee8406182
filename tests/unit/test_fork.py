"""Several choices of one prompt: computed once, parted block by block, each as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import ContextLengthExceeded, InvalidRequest, KvOverflow, WorkerFull
from baton.sampling import SamplingSpec
from model.engine.events import SequenceFailed, SequencePreempted, TokenSampled
from model.engine.mock_runner import expected_tokens
from model.engine.plan import StepPlan, StepResult
from model.engine.runner import LayerListener
from model.engine.sequence import Reservation
from tests.mock_engines import BLOCK, MOCK_CLASS, SteppedEngine, hand_off

SEEDED = SamplingSpec(temperature=1.0, seed=5, max_tokens=8)


def prompt(length: int) -> tuple[int, ...]:
    return tuple(range(length))


def expected(length: int, choice: int, spec: SamplingSpec = SEEDED) -> list[int]:
    return expected_tokens(prompt(length), spec, MOCK_CLASS, choice_index=choice)


def reserve(engine: SteppedEngine, length: int, choices: int, **rest: Any) -> Reservation:
    spec = rest.pop("spec", SEEDED)
    return engine.reserve(prompt(length), spec, more_choices=tuple(range(1, choices)), **rest)


def copies(engine: SteppedEngine) -> int:
    return sum(len(plan.copies) for plan in engine.runner.plans)


@pytest.mark.parametrize("length", [3, 8, 10])
def test_the_prompt_is_computed_once_and_each_choice_is_as_if_alone(length: int) -> None:
    engine = SteppedEngine()
    taken = reserve(engine, length, 4)
    assert engine.load().blocks.owned == length // BLOCK + 4
    engine.run_dry()
    assert engine.runner.computed(taken.seq_id) == list(range(length))
    for choice, seq_id in enumerate(taken.choices):
        assert engine.tokens(seq_id) == expected(length, choice)
        assert engine.runner.computed(seq_id) == list(range(length, length + 7))
    assert len({tuple(expected(length, c)) for c in range(4)}) == 4, "the choices differ"
    assert copies(engine) == (3 if length % BLOCK else 0)
    assert engine.check_integrity(idle=True) == []


def test_first_tokens_come_with_the_same_step() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 3)
    while not engine.events:
        engine.step()
    first = [e for e in engine.events if isinstance(e, TokenSampled)]
    assert [e.seq_id for e in first] == list(taken.choices)
    assert all(e.timings is not None and e.timings.cached_tokens == 0 for e in first)


def test_the_last_who_has_the_partial_block_writes_in_place() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 3)
    while not engine.events:
        engine.step()
    for seq_id in taken.choices[1:]:
        engine.cancel(seq_id)
    engine.run_dry()
    assert copies(engine) == 0
    assert engine.tokens(taken.choices[0]) == expected(10, 0)
    assert engine.check_integrity(idle=True) == []


def test_one_is_cancelled_before_the_prompt_is_computed() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 3)
    engine.step()
    engine.cancel(taken.choices[0])
    engine.run_dry()
    assert engine.tokens(taken.choices[0]) == []
    assert engine.tokens(taken.choices[2]) == expected(10, 2)
    assert copies(engine) == 1
    assert engine.check_integrity(idle=True) == []


def test_with_the_last_choice_the_stem_ends() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 2)
    for seq_id in taken.choices:
        engine.cancel(seq_id)
    assert engine.check_integrity(idle=True) == []


def test_a_copied_block_stays_until_the_step_has_copied_it() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 2)
    while not engine.events:
        engine.step()

    def cancel_both() -> None:
        for seq_id in taken.choices:
            engine.cancel(seq_id)
        assert engine.check_integrity() == []
        assert engine.load().blocks.quarantined == 4, "the table of one, and the other's copy"

    engine.runner.during = cancel_both
    engine.step()
    assert copies(engine) == 1
    assert engine.check_integrity(idle=True) == []


@pytest.mark.parametrize("length", [8, 10])
def test_one_hand_off_for_all(length: int) -> None:
    source, target = SteppedEngine(), SteppedEngine()
    wanted = reserve(target, length, 3, receive=True)
    taken = reserve(source, length, 3, keep=True, export=True)
    assert source.load().blocks.owned == -(-length // BLOCK), "nobody goes on there"
    source.run_dry()
    hand_off(source, taken, target, wanted)
    source.release(taken.seq_id)
    first = {wanted.choices[i]: source.tokens(taken.choices[i])[0] for i in range(3)}
    target.cancel(wanted.choices[1])
    target.fork(wanted.seq_id, first)
    target.run_dry()
    for i in (0, 2):
        own = wanted.choices[i]
        assert [first[own], *target.tokens(own)] == expected(length, i)
    assert target.tokens(wanted.choices[1]) == []
    assert source.check_integrity(idle=True) == target.check_integrity(idle=True) == []


def test_one_choice_without_a_first_token_has_ended() -> None:
    engine = SteppedEngine()
    wanted = reserve(engine, 10, 3, receive=True)
    engine.fork(wanted.seq_id, {wanted.choices[1]: expected(10, 1)[0]})
    assert engine.load().running == 1
    engine.cancel(wanted.choices[1])
    assert engine.check_integrity(idle=True) == []


def test_choices_that_end_with_their_first_token() -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 10, 3, spec=SamplingSpec(temperature=0.0, max_tokens=1))
    engine.run_dry()
    ends = [e for e in engine.events if isinstance(e, TokenSampled) and e.finish_reason]
    assert [e.seq_id for e in ends] == list(taken.choices)
    assert engine.check_integrity(idle=True) == []


def test_what_fails_the_prompt_fails_the_stem() -> None:
    class Failing(SteppedEngine):
        def _compute(self, plan: StepPlan) -> StepResult:
            return StepResult(plan.step, {}, {1: KvOverflow("too large")})

    engine = Failing()
    taken = reserve(engine, 3, 2)
    engine.run_dry()
    [failed] = engine.events
    assert isinstance(failed, SequenceFailed) and failed.seq_id == taken.seq_id
    assert engine.check_integrity(idle=True) == []


def test_one_that_cannot_be_drawn_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SteppedEngine()
    taken = reserve(engine, 3, 2)
    run = engine.runner.run

    def without_one(plan: StepPlan, on_layer: LayerListener) -> StepResult:
        result = run(plan, on_layer)
        result.tokens.pop(taken.choices[0], None)
        return result

    monkeypatch.setattr(engine.runner, "run", without_one)
    engine.run_dry()
    [failed] = [e for e in engine.events if isinstance(e, SequenceFailed)]
    assert failed.seq_id == taken.choices[0]
    assert engine.tokens(taken.choices[1]) == expected(3, 1)
    assert engine.check_integrity(idle=True) == []


def test_room_is_counted_for_every_choice() -> None:
    engine = SteppedEngine(num_blocks=8)
    reserve(engine, 10, 5)  # 2 whole blocks, 5 to go on in
    assert engine.load().blocks.free == 1
    with pytest.raises(WorkerFull):
        engine.reserve(tuple(range(100, 106)))
    with pytest.raises(ContextLengthExceeded, match=r"7 choices.* 9 KV blocks.*pool has 8"):
        reserve(engine, 10, 7)
    with pytest.raises(WorkerFull, match=r"5 sequences are live and 4 more.*max_running is 8"):
        reserve(engine, 3, 4)
    with pytest.raises(InvalidRequest, match=r"9 choices.*at most 8"):
        reserve(engine, 3, 9)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_choices_in_any_pool(data: st.DataObject) -> None:
    """Groups and single sequences in a pool that is often too small, cancelled at any time: what
    is not cancelled gets all its tokens, if need be by itself after a preemption."""
    draw = data.draw
    engine = SteppedEngine(num_blocks=draw(st.integers(8, 20)))
    groups: list[tuple[int, Reservation]] = []
    for _ in range(draw(st.integers(1, 3))):
        length, choices = draw(st.integers(1, 13)), draw(st.integers(1, 4))
        try:
            groups.append((length, reserve(engine, length, choices)))
        except WorkerFull:
            continue
        for _ in range(draw(st.integers(0, 4))):
            engine.step()
    wanted = {
        seq_id: (length, choice)
        for length, group in groups
        for choice, seq_id in enumerate(group.choices or (group.seq_id,))
    }
    stems = {group.seq_id: group.choices for _, group in groups}
    for _ in range(draw(st.integers(0, 3))):
        if wanted:
            seq_id = draw(st.sampled_from(sorted(wanted)))
            engine.cancel(seq_id)
            del wanted[seq_id]
        engine.step()
    engine.run_dry()
    preempted = {e.seq_id for e in engine.events if isinstance(e, SequencePreempted)}
    lost = preempted | {i for stem in preempted for i in stems.get(stem, ())}
    for seq_id, (length, choice) in wanted.items():
        tokens = engine.tokens(seq_id)
        if seq_id in lost:
            spec = SEEDED
            again = engine.submit(
                prompt(length), spec, generated_ids=tuple(tokens), choice_index=choice
            )
            engine.run_dry()
            tokens += engine.tokens(again)
        assert tokens == expected(length, choice)
    assert engine.check_integrity(idle=True) == []
