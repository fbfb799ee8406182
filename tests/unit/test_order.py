"""Who goes first: the urgent, the short where asked for, and sooner or later everyone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.sampling import SamplingSpec
from baton.settings import PrefillOrder
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.events import SequencePreempted
from model.engine.order import PATIENCE, PRIORITY_TOKENS, arrival, urgency
from model.engine.plan import StepResult
from model.engine.scheduler import Scheduler
from model.engine.sequence import SequenceRequest
from model.engine.settings import SchedulerSettings

STEP, CHUNK, QUEUED = 16, 8, 64


@dataclass
class Prompt:
    tokens: int
    arrived: int  #: tokens computed before it came


class Bench(Scheduler):
    """Prompts without a common prefix, and none of them decodes."""

    def __init__(self, order: PrefillOrder, num_blocks: int = 1024) -> None:
        settings = SchedulerSettings(
            block_size=4,
            max_model_len=4096,
            max_tokens_per_step=STEP,
            chunk_tokens=CHUNK,
            max_running=STEP - 1,
            prefill_order=order,
        )
        pool = BlockPool(num_blocks)
        super().__init__(settings, pool, PrefixCache(pool, 4, "order"), lambda: 0.0)
        self.prompts: dict[int, Prompt] = {}

    def submit(self, tokens: int, priority: int = 0, most: int = 1, keep: bool = True) -> int:
        first = 10_000 * self._next_seq_id
        request = SequenceRequest(
            prompt_ids=tuple(range(first, first + tokens)),
            spec=SamplingSpec(max_tokens=most),
            priority=priority,
            keep=keep,
        )
        seq_id = self.add(request).seq_id
        self.prompts[seq_id] = Prompt(tokens, self.computed_tokens)
        return seq_id

    def step(self) -> list[int]:
        """The sequences computed, in order; those that are computed wholly leave."""
        plan = self.plan()
        sampled = {part.seq_id: 7 for part in plan.slices if part.sample is not None}
        if plan.slices:
            self.commit(StepResult(plan.step, sampled))
        for seq_id in sampled:
            self.cancel(seq_id)
        assert self.check() == []
        return [part.seq_id for part in plan.slices]


def test_first_come_first_served() -> None:
    bench = Bench("fcfs")
    long, short = bench.submit(20), bench.submit(2)
    assert bench.step() == [long, short]


def test_shortest_remaining_first() -> None:
    bench = Bench("srpt")
    long = bench.submit(40)
    assert bench.step() == [long]
    middle, short = bench.submit(28), bench.submit(2)
    assert bench.step() == [short, middle, long], "of the long one 32 are left"


def test_a_long_prompt_is_computed_in_the_end() -> None:
    """However many short ones keep coming."""
    bench = Bench("srpt")
    long = bench.submit(40)
    steps = [bench.submit(8) and bench.submit(8) and bench.step() for _ in range(20)]
    passed = next(i for i, step in enumerate(steps) if long in step)
    assert 0 < passed * STEP <= PATIENCE * 40


@given(st.data())
def test_nobody_starves_by_shorter_ones(data: st.DataObject) -> None:
    """The bound: once PATIENCE times its length was computed since it came, a prompt waits at most
    for those that were there by then; and of those there are never more than QUEUED tokens."""
    bench = Bench("srpt")
    for _ in range(data.draw(st.integers(1, 60))):
        while (room := QUEUED - bench.queued_tokens) > 0 and data.draw(st.booleans()):
            bench.submit(data.draw(st.integers(1, min(room, 30))))
        planned = bench.step()
        for seq_id, prompt in bench.prompts.items():
            if seq_id in bench._live and seq_id not in planned:
                waited = bench.computed_tokens - prompt.arrived
                assert waited <= PATIENCE * prompt.tokens + QUEUED + STEP


@given(
    st.sampled_from(["fcfs", "srpt"]),
    st.tuples(st.integers(0, 10**9), st.integers(-3, 3), st.integers(1, 10**5)),
    st.tuples(st.integers(0, 10**9), st.integers(-3, 3), st.integers(1, 10**5)),
)
def test_a_newcomer_passes_only_for_so_long(
    order: PrefillOrder, here: tuple[int, int, int], late: tuple[int, int, int]
) -> None:
    """Which of two goes first never turns round while they wait, and the bound is what is said."""
    (since, priority, missing), (delay, other, fewer) = here, late
    passes = urgency(order, arrival(since + delay, other), fewer) < urgency(
        order, arrival(since, priority), missing
    )
    shorter = PATIENCE * (missing - fewer) if order == "srpt" else 0
    assert passes == (delay < PRIORITY_TOKENS * (other - priority) + shorter)


def test_priority_is_worth_so_many_tokens() -> None:
    bench = Bench("fcfs")
    usual = bench.submit(20)
    bench.computed_tokens += PRIORITY_TOKENS - 1
    urgent = bench.submit(20, priority=1)
    assert bench.step() == [urgent, usual]
    bench.computed_tokens += STEP
    late = bench.submit(20, priority=1)
    assert bench.step() == [urgent, usual]
    assert late in bench.step()


@pytest.mark.parametrize(("age", "gone"), [(0, "usual"), (PRIORITY_TOKENS + 1, "urgent")])
def test_who_waited_long_is_not_preempted_for_one_of_higher_priority(age: int, gone: str) -> None:
    bench = Bench("fcfs", num_blocks=6)
    first = bench.submit(4, priority=9, most=8, keep=False)
    usual = bench.submit(4, most=8, keep=False)
    bench.computed_tokens += age
    urgent = bench.submit(4, priority=1, most=8, keep=False)
    preempted: list[int] = []
    while not preempted:
        plan = bench.plan()
        preempted += [e.seq_id for e in bench.take_events() if isinstance(e, SequencePreempted)]
        bench.commit(StepResult(plan.step, {part.seq_id: 7 for part in plan.slices}))
    assert preempted == [{"usual": usual, "urgent": urgent}[gone]] and first in bench._live
