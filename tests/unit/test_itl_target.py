"""Prompts beside decodes: steps last no longer than the target, and prompts get on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from baton.sampling import SamplingSpec
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.costs import FIRST_TOKENS, REMEASURE
from model.engine.events import TokenSampled
from model.engine.mock_runner import CostModel, expected_tokens
from model.engine.plan import StepResult
from model.engine.scheduler import Scheduler
from model.engine.sequence import SequenceRequest
from model.engine.settings import SchedulerSettings
from tests.mock_engines import GREEDY, MOCK_CLASS, SteppedEngine

TOKEN = 7
DECODES = 6
COST = CostModel(step_s=0.01, prefill_token_s=0.0005, decode_s=0.001)
DECODE_STEP = 0.016
TARGET = 0.021


@dataclass(frozen=True)
class Step:
    prefill: int  #: prompt tokens
    decodes: int
    seconds: float


class Bench(Scheduler):
    """Six sequences decode for a long time; steps take what ``COST`` says."""

    def __init__(self, target_s: float = TARGET, cost: CostModel = COST) -> None:
        settings = SchedulerSettings(
            block_size=16,
            max_model_len=4096,
            max_tokens_per_step=128,
            chunk_tokens=64,
            max_running=16,
            prefill_order="fcfs",
            itl_target_s=target_s,
        )
        pool = BlockPool(1024)
        super().__init__(settings, pool, PrefixCache(pool, 16, "target"), lambda: 0.0)
        self.cost = cost

    def decode(self) -> None:
        """Let the six decode, and run a few steps."""
        for i in range(DECODES):
            spec = SamplingSpec(max_tokens=1000)
            request = SequenceRequest(prompt_ids=(i,) * 20, spec=spec, receive=True)
            self.activate(self.add(request).seq_id, TOKEN)
        for _ in range(3):
            assert self.step() == Step(0, DECODES, pytest.approx(DECODE_STEP))

    def arrive(self, tokens: int) -> int:
        """A prompt to be computed here, like no other."""
        prompt = tuple(range(1000 * self.live, 1000 * self.live + tokens))
        spec = SamplingSpec(max_tokens=50)
        return self.add(SequenceRequest(prompt_ids=prompt, spec=spec)).seq_id

    def step(self) -> Step:
        plan = self.plan()
        seconds = self.cost.seconds(plan)
        decodes = self.running
        sampled = {part.seq_id: TOKEN for part in plan.slices if part.sample is not None}
        self.commit(StepResult(plan.step, sampled, compute_s=seconds))
        assert self.check() == []
        return Step(plan.tokens - decodes, decodes, seconds)

    def until_computed(self, seq_id: int, most: int) -> list[Step]:
        """The steps until a prompt's first token; ``most`` of them at most."""
        self.take_events()
        steps = []
        for _ in range(most):
            steps.append(self.step())
            fresh = [e for e in self.take_events() if isinstance(e, TokenSampled)]
            if any(event.seq_id == seq_id for event in fresh):
                return steps
        raise AssertionError(f"{self.queued_tokens} tokens are left after {most} steps")


def test_beside_a_long_prompt_steps_keep_to_the_target() -> None:
    bench = Bench()
    bench.decode()
    cap = round((TARGET - DECODE_STEP) / COST.prefill_token_s)
    steps = bench.until_computed(
        bench.arrive(400), most=400 // cap * (REMEASURE + 1) // REMEASURE + 3
    )
    assert steps[0].prefill == FIRST_TOKENS, "nothing is known of prompt tokens yet"
    assert {step.decodes for step in steps} == {DECODES}, "no decode is left out"
    assert sum(step.prefill for step in steps) == 400
    assert all(step.prefill <= cap for step in steps)
    assert all(step.seconds <= TARGET + 1e-9 for step in steps)
    assert any(step.seconds > TARGET - COST.prefill_token_s for step in steps), "and it is used"


def test_several_prompts_share_what_one_gets() -> None:
    bench = Bench()
    bench.decode()
    first, second = bench.arrive(30), bench.arrive(30)
    steps = bench.until_computed(first, most=6)
    assert max(step.prefill for step in steps) <= 10
    bench.until_computed(second, most=6)


def test_a_prompt_that_is_dear_gets_a_token_a_step() -> None:
    bench = Bench(cost=CostModel(step_s=0.01, prefill_token_s=0.1, decode_s=0.001))
    bench.decode()
    steps = bench.until_computed(bench.arrive(50), most=60)
    assert {step.prefill for step in steps[1:]} == {0, 1}


def test_without_decodes_a_prompt_has_the_whole_step() -> None:
    bench = Bench()
    first, second = bench.arrive(64), bench.arrive(80)
    assert bench.step().prefill == 128
    assert first and second


def test_a_batch_that_takes_all_of_the_target_leaves_prompts_a_share() -> None:
    """0.3 decode steps: 9 tokens, and steps of 20.5 ms."""
    bench = Bench(target_s=0.001)
    bench.decode()
    steps = bench.until_computed(bench.arrive(60), most=9)
    assert max(step.prefill for step in steps) == 9


def test_without_a_target_a_prompt_takes_what_fits() -> None:
    bench = Bench(target_s=math.inf)
    bench.decode()
    bench.arrive(64)
    assert bench.step().prefill == 64


def test_a_target_is_above_zero() -> None:
    with pytest.raises(ValueError, match="itl_target_s is 0, not above 0"):
        Bench(target_s=0)


def test_the_tokens_are_the_same_with_any_target() -> None:
    prompts = [tuple(range(i, i + 40)) for i in range(3)]
    for target_s in (math.inf, 0.001, 0.021, 1.0):
        engine = SteppedEngine(128, cost=COST, itl_target_s=target_s)
        seqs = []
        for prompt in prompts:
            seqs.append(engine.submit(prompt))
            for _ in range(10):
                engine.step()
        engine.run_dry()
        for seq, prompt in zip(seqs, prompts, strict=True):
            assert engine.tokens(seq) == expected_tokens(prompt, GREEDY, MOCK_CLASS)
        assert engine.check_integrity(idle=True) == []
        assert engine.load().costs.decode_step_s > 0
