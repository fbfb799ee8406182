"""Prompts that begin alike and wait together: each token is computed once, whoever goes first.

The engine's books are checked in and after every step, no two sequences may write the same place,
and the tokens depend on every row of KV read back (see MockRunner).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InternalError, WorkerFull
from baton.sampling import SamplingSpec
from model.engine.events import PrefixShared, TokenSampled
from model.engine.mock_runner import expected_tokens
from model.engine.sequence import SequenceRequest
from tests.mock_engines import BLOCK, GREEDY, MOCK_CLASS, SteppedEngine, hand_off

PREFIX = tuple(range(40))


def alike(count: int, suffix: int = 5) -> list[tuple[int, ...]]:
    """Prompts that share PREFIX, and nothing after it."""
    return [(*PREFIX, *range(100 * i, 100 * i + suffix)) for i in range(1, count + 1)]


def finish(engine: SteppedEngine, prompts: dict[int, tuple[int, ...]]) -> None:
    """Run dry; every sequence has the tokens that it must have."""
    engine.run_dry()
    for seq, prompt in prompts.items():
        assert engine.tokens(seq) == expected_tokens(prompt, GREEDY, MOCK_CLASS)
    assert engine.check_integrity(idle=True) == []


def test_a_prefix_that_many_want_is_computed_once_and_kept_once() -> None:
    prompts = alike(16)
    engine = SteppedEngine(num_blocks=10 + 16 * 4, max_running=16, max_tokens_per_step=40)
    seqs = {engine.submit(prompt): prompt for prompt in prompts}
    assert engine.load().queued_tokens == 40 + 16 * 5, "what all want counts once"
    assert engine.load().blocks.owned == 10 + 16 * 2
    finish(engine, seqs)
    computed = [len(engine.runner.computed(seq)) for seq in seqs]
    assert sum(computed) == 40 + 16 * (5 + GREEDY.max_tokens - 1)
    cached = {
        e.seq_id: e.timings.cached_tokens
        for e in engine.events
        if isinstance(e, TokenSampled) and e.timings is not None
    }
    assert sorted(cached.values()) == [0] + [40] * 15


def test_what_was_cached_when_it_came_is_what_it_is_told() -> None:
    engine = SteppedEngine(chunk_tokens=6)
    first, second = alike(2)
    engine.submit(first)
    engine.step()
    assert engine.reserve(second).hit_tokens == 4, "one block is full, another half computed"
    engine.runner.plans.clear()
    engine.step()
    assert [part.start for part in engine.runner.plans[0].slices] == [6]


def test_equal_prompts_share_all_but_the_block_of_the_last_token() -> None:
    engine = SteppedEngine()
    seqs = {engine.submit(PREFIX): PREFIX for _ in range(3)}
    finish(engine, seqs)
    assert sum(len(engine.runner.computed(seq)) for seq in seqs) == 36 + 3 * (4 + 7)


def test_other_salts_share_nothing() -> None:
    engine = SteppedEngine(num_blocks=64)
    one = engine.submit(PREFIX, salt=b"one")
    two = engine.submit(PREFIX, salt=b"two")
    assert engine.load().blocks.owned == 20
    finish(engine, {one: PREFIX, two: PREFIX})


def test_the_next_goes_on_where_the_first_was_cancelled() -> None:
    engine = SteppedEngine(chunk_tokens=6)
    first, second = alike(2)
    gone, left = engine.submit(first), engine.submit(second)
    for _ in range(3):
        engine.step()
    engine.cancel(gone)
    finish(engine, {left: second})
    assert engine.runner.computed(gone) == list(range(18))
    assert engine.runner.computed(left)[0] == 18


def test_what_an_unfinished_step_computed_does_not_count() -> None:
    """It is cancelled while its step runs: the next computes those tokens again."""
    engine = SteppedEngine(chunk_tokens=8)
    first, second = alike(2)
    gone, left = engine.submit(first), engine.submit(second)

    def cancel() -> None:
        engine.cancel(gone)
        assert engine.check_integrity() == []

    engine.runner.during = cancel
    engine.step()
    engine.runner.during = None
    finish(engine, {left: second})
    assert engine.runner.computed(left)[0] == 0


def test_the_next_goes_on_where_the_first_failed() -> None:
    engine = SteppedEngine(chunk_tokens=8)
    first, second = alike(2)
    bad, good = engine.submit(first), engine.submit(second)
    engine.step()
    plan = engine._scheduler.plan()
    engine._scheduler.fail(InternalError("the device is gone"))
    assert [part.seq_id for part in plan.slices] == [bad]
    finish(engine, {good: second})
    assert engine.runner.computed(good)[0] == 8


def test_one_of_higher_priority_does_not_wait_for_another() -> None:
    engine = SteppedEngine(chunk_tokens=6, max_tokens_per_step=20)
    first, second = alike(2)
    usual = engine.submit(first)
    engine.step()
    urgent = engine.submit(second, priority=1)
    engine.runner.plans.clear()
    engine.step()
    assert [part.seq_id for part in engine.runner.plans[0].slices] == [urgent]
    finish(engine, {usual: first, urgent: second})
    assert engine.runner.computed(urgent)[0] == 6, "what the other has computed is its, too"
    assert len(set(engine.runner.computed(usual)) & set(range(40))) == 0


def test_one_that_lags_holds_up_nobody() -> None:
    engine = SteppedEngine(chunk_tokens=6)
    first, second = alike(2)
    slow, quick = (engine.submit(prompt, keep=True, export=True) for prompt in (first, second))
    engine.step()
    engine.lag(slow, True)
    while not engine.tokens(quick):
        engine.step()
    assert engine.runner.computed(slow)[:7] in ([*range(6)], [*range(6), 40])
    assert engine.runner.computed(quick) == list(range(6, 45))
    for seq in (slow, quick):
        engine.release(seq)
    assert engine.check_integrity(idle=True) == []


def test_a_hand_off_learns_of_what_another_computes() -> None:
    """Its reader may take each block as soon as it is there, not only when its own turn comes."""
    engine = SteppedEngine(chunk_tokens=10, max_tokens_per_step=10)
    first, second = alike(2)
    one, two = (engine.submit(prompt, keep=True, export=True) for prompt in (first, second))
    engine.run_dry()
    shared = [e for e in engine.events if isinstance(e, PrefixShared)]
    assert {e.seq_id for e in shared} == {two}
    assert [e.end for e in shared] == [8, 20, 28, 40], "whole blocks"
    for seq in (one, two):
        engine.release(seq)
    assert engine.check_integrity(idle=True) == []


def test_kv_that_will_not_come_is_shared_like_any_other() -> None:
    engine = SteppedEngine(num_blocks=60)
    first, second, third = alike(3)
    here = engine.submit(first)
    lost, held = (engine.submit(prompt, receive=True) for prompt in (second, third))
    hold = engine.hold(held)
    engine.step()
    for seq in (lost, held):
        engine.compute_here(seq)
    engine.unhold(hold)
    assert engine.load().blocks.owned == 10 + 3 * 2
    finish(engine, {here: first, lost: second, held: third})
    assert sum(len(engine.runner.computed(seq)) for seq in (here, lost, held)) == 40 + 3 * (5 + 7)


def test_blocks_under_transfer_are_replaced_or_nothing_changes() -> None:
    once, (first, second) = SamplingSpec(max_tokens=1), alike(2)
    for spare in (1, 2):  # of the suffix; the prefix is the first's
        engine = SteppedEngine(num_blocks=24 + spare)
        engine.submit(first, once)
        received = engine.submit(second, once, receive=True)
        hold = engine.hold(received)
        if spare == 1:
            with pytest.raises(WorkerFull):
                engine.compute_here(received)
            assert engine.load().blocks.owned == 24
            engine.cancel(received)
        else:
            engine.compute_here(received)
            assert engine.load().blocks.quarantined == 12
        engine.unhold(hold)
        engine.run_dry()
        assert engine.check_integrity(idle=True) == []


def test_received_blocks_give_way_to_equal_ones() -> None:
    """Two hand-offs of one prompt take the bytes twice, and the memory once they are complete."""
    source, target = SteppedEngine(), SteppedEngine(num_blocks=64)
    taken = source.reserve(PREFIX, keep=True)
    source.run_dry()
    wanted = [target.reserve(PREFIX, receive=True) for _ in range(2)]
    for reserved in wanted:
        assert reserved.hit_tokens == 0
        hand_off(source, taken, target, reserved)
        target.activate(reserved.seq_id, source.tokens(taken.seq_id)[0])
    assert target.load().blocks.owned == 10
    target.run_dry()
    expected = expected_tokens(PREFIX, GREEDY, MOCK_CLASS)
    assert [target.tokens(r.seq_id) for r in wanted] == [expected[1:]] * 2
    assert target.check_integrity(idle=True) == []


PROMPTS = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(-1, 1)),
    min_size=1,
    max_size=8,
)


@given(PROMPTS, st.integers(1, 9), st.integers(1, 3), st.data())
def test_each_token_of_a_tree_of_prompts_is_computed_once(
    prompts: list[tuple[list[int], int]], chunk: int, share: int, data: st.DataObject
) -> None:
    """Whatever the priorities, chunks and arrivals: of every full block of every prefix, but for
    the block that a prompt's last token is in."""
    engine = SteppedEngine(num_blocks=256, chunk_tokens=chunk, max_tokens_per_step=8 + share)
    seqs = dict[int, tuple[int, ...]]()
    for branches, priority in prompts:
        # Each branch is three tokens, so that prompts part inside of blocks, too.
        prompt = tuple(2 * i + branch for i, branch in enumerate(branches) for _ in range(3))
        request = SequenceRequest(prompt_ids=prompt, spec=GREEDY, priority=priority)
        seqs[engine.add(request).seq_id] = prompt
        for _ in range(data.draw(st.integers(0, 2))):
            engine.step()
    finish(engine, seqs)
    computed = {seq: [p for p in engine.runner.computed(seq) if p < len(seqs[seq])] for seq in seqs}
    common, own = set[Sequence[int]](), 0
    for prompt in seqs.values():
        border = (len(prompt) - 1) // BLOCK * BLOCK
        common |= {prompt[:end] for end in range(BLOCK, border + 1, BLOCK)}
        own += len(prompt) - border
    assert sum(map(len, computed.values())) <= len(common) * BLOCK + own
