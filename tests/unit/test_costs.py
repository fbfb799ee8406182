"""What steps cost: learned from the steps, and turned into prompt tokens beside decodes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.ratio import Ratio
from model.engine.costs import (
    FIRST_TOKENS,
    REMEASURE,
    REMEASURE_CHANGED,
    Costs,
    StepCosts,
    beside_s,
)

TARGET = 0.02


@dataclass(frozen=True)
class Machine:
    """Takes so many seconds per step, per decoding sequence, per prompt token."""

    step_s: float = 0.01
    decode_s: float = 0.001
    token_s: float = 0.0005

    def seconds(self, tokens: int, decodes: int) -> float:
        return self.step_s + decodes * self.decode_s + tokens * self.token_s

    def run(self, costs: StepCosts, tokens: int, decodes: int) -> float:
        seconds = self.seconds(tokens, decodes)
        costs.observe(tokens, decodes, seconds)
        return seconds

    def overrun(self, costs: StepCosts, decodes: int, target_s: float = TARGET) -> float:
        """Run a step with all the prompt tokens that are allowed: seconds beyond the target, or
        beyond 1.3 decode steps where these take more, of more than the one token that always
        goes."""
        tokens = costs.allowance(decodes, target_s)
        spent = self.run(costs, tokens, decodes)
        bound = max(target_s, 1.3 * self.seconds(0, decodes))
        return 0.0 if tokens <= 1 else spent - bound


def test_nothing_is_known_at_first() -> None:
    costs = StepCosts()
    assert costs.estimate == Costs()
    assert costs.allowance(4, TARGET) == FIRST_TOKENS
    costs.observe(100, 0, 0.0)
    assert costs.estimate == Costs(), "steps that take no time teach nothing"


def test_prompt_tokens_are_measured_by_the_token() -> None:
    """A few short prompts, dear by the token, do not hide what a long one costs."""
    costs = StepCosts()
    costs.observe(2048, 0, 2.048)
    for _ in range(3):
        costs.observe(1, 0, 0.1)
    assert costs.estimate.prefill_token_s == pytest.approx(0.00115, rel=0.01)
    for _ in range(20):
        costs.observe(2048, 0, 4.096)
    assert costs.estimate.prefill_token_s == pytest.approx(0.002, rel=0.01)
    assert costs.estimate.prefill_tokens == pytest.approx(4096, rel=0.01)


def test_a_hiccup_moves_the_decode_step_little() -> None:
    costs = StepCosts()
    for _ in range(5):
        costs.observe(0, 4, 0.01)
    costs.observe(0, 4, 1.0)
    assert costs.estimate.decode_step_s == pytest.approx(0.0125)
    costs.observe(0, 8, 0.02)
    assert costs.estimate.decode_step_s == 0.02, "another batch is measured afresh"


def test_ratio() -> None:
    ratio = Ratio()
    assert ratio.value == 0.0
    ratio.add(1.0, 10)
    ratio.add(4.0, 10, keep=0.5)
    assert ratio.value == pytest.approx(4.5 / 15)


def test_beside_decodes_tokens_cost_what_they_add() -> None:
    """Alone, a token costs twice what it adds to a decode step: the latter decides."""
    costs, machine = StepCosts(), Machine()
    machine.run(costs, 0, 4)
    costs.observe(512, 0, 512 * 2 * machine.token_s)
    assert costs.allowance(4, TARGET) == int((TARGET - 0.014) / 0.001)
    for _ in range(3):
        machine.overrun(costs, 4)
    assert costs.allowance(4, TARGET) == int((TARGET - 0.014) / 0.0005)


def test_beside_decodes_tokens_are_never_free() -> None:
    """Steps with prompt tokens that happen to be as fast as those without prove little."""
    costs = StepCosts()
    costs.observe(0, 4, 0.01)
    costs.observe(512, 0, 0.512)
    for _ in range(4):
        costs.observe(costs.allowance(4, TARGET), 4, 0.009)
    assert costs.allowance(4, TARGET) == int((TARGET - 0.01) / 0.0005)


@pytest.mark.parametrize(
    ("decode_step_s", "left_s"),
    [(0.008, 0.052), (0.030, 0.030), (0.050, 0.015), (0.300, 0.090)],
)
def test_what_a_target_leaves(decode_step_s: float, left_s: float) -> None:
    """Of 60 ms: much on a fast device, some on a slow one, and never nothing."""
    assert beside_s(decode_step_s, 0.06) == pytest.approx(left_s)


def test_a_large_chunk_is_not_trusted_to_small_ones() -> None:
    costs = StepCosts()
    costs.observe(0, 4, 0.01)
    allowed = []
    for _ in range(6):
        allowed.append(costs.allowance(4, TARGET))
        costs.observe(allowed[-1], 4, 0.01 + allowed[-1] * 1e-6)
    assert allowed == [8, 16, 32, 64, 128, 256]


def test_a_decode_step_is_measured_afresh_now_and_then() -> None:
    costs, machine = StepCosts(), Machine()
    machine.run(costs, 0, 8)
    steps = []
    for _ in range(2 * REMEASURE + 2):
        steps.append(costs.allowance(8, TARGET))
        machine.run(costs, steps[-1], 8)
    assert [i for i, tokens in enumerate(steps) if not tokens] == [REMEASURE, 2 * REMEASURE + 1]
    for _ in range(REMEASURE_CHANGED):
        assert machine.run(costs, costs.allowance(16, TARGET), 16)
    assert costs.allowance(16, TARGET) == 0, "the batch has changed"


@given(
    st.builds(Machine, st.floats(1e-4, 0.1), st.floats(0, 0.01), st.floats(1e-6, 0.1)),
    st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=1, max_size=8),
    st.floats(0.001, 2.0),
    st.booleans(),
)
def test_mixed_steps_keep_to_the_target_once_measured(
    machine: Machine, batches: list[int], target_s: float, alone: bool
) -> None:
    """Whatever the machine, and however the batch grows and shrinks: after the first chunk, and
    a few steps after each change, no step takes longer than the target, or than 1.3 decode steps
    on a machine that does not keep it anyway."""
    costs = StepCosts()
    if alone:
        costs.observe(512, 0, 512 * machine.token_s)
    machine.run(costs, 0, batches[0])
    machine.overrun(costs, batches[0], target_s)
    for decodes in batches:
        for _ in range(REMEASURE_CHANGED + 1):
            machine.overrun(costs, decodes, target_s)
        for _ in range(REMEASURE):
            assert machine.overrun(costs, decodes, target_s) <= 1e-9


@given(st.integers(1, 64), st.floats(1e-6, 10.0))
def test_prefill_never_starves(decodes: int, token_s: float) -> None:
    costs, machine = StepCosts(), Machine(token_s=token_s)
    machine.run(costs, 0, decodes)
    done = 0
    for _ in range(REMEASURE + 1):
        tokens = costs.allowance(decodes, TARGET)
        machine.run(costs, tokens, decodes)
        done += tokens
    assert done >= REMEASURE
