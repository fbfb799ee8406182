"""Engines on mock runners, for tests that step them by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from baton.identity import CompatibilityClass
from baton.sampling import SamplingSpec
from model.engine.engine import Engine
from model.engine.events import Event, TokenSampled
from model.engine.mock_runner import CostModel, MockRunner
from model.engine.plan import StepPlan, StepResult
from model.engine.runner import LayerListener
from model.engine.sequence import Reservation, SequenceRequest
from model.engine.settings import SchedulerSettings

BLOCK = 4
MOCK_CLASS = CompatibilityClass("mock", layers=2, kv_heads=1, head_size=4, block_size=BLOCK)
GREEDY = SamplingSpec(temperature=0.0, max_tokens=8)


class StrictRunner(MockRunner):
    """Remembers its plans, and refuses one in which two sequences write the same place.

    ``during``, where set, is called while a step runs.
    """

    def __init__(self, num_blocks: int, cost: CostModel | None) -> None:
        super().__init__(MOCK_CLASS, num_blocks, cost=cost, sleep=lambda _: None)
        self.plans: list[StepPlan] = []
        self.during: Callable[[], None] | None = None

    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        places = Counter(
            (part.block_table[position // BLOCK], position % BLOCK)
            for part in plan.slices
            for position in range(part.start, part.end)
        )
        assert not places or max(places.values()) == 1, plan
        self.plans.append(plan)
        if self.during is not None:
            self.during()
        return super().run(plan, on_layer)

    def computed(self, seq_id: int) -> list[int]:
        """The positions computed for a sequence, in the order of the steps."""
        parts = [part for plan in self.plans for part in plan.slices if part.seq_id == seq_id]
        return [position for part in parts for position in range(part.start, part.end)]


class SteppedEngine(Engine):
    """An engine without a thread that remembers its events and checks its books after steps."""

    runner: StrictRunner

    def __init__(
        self, num_blocks: int = 32, cost: CostModel | None = None, **settings: Any
    ) -> None:
        limits: dict[str, Any] = {"max_model_len": 256, "chunk_tokens": 5, "max_running": 8}
        limits |= {"max_tokens_per_step": 12, "prefill_order": "fcfs"} | settings
        self.events: list[Event] = []
        super().__init__(
            StrictRunner(num_blocks, cost),
            SchedulerSettings(block_size=BLOCK, **limits),
            self.events.extend,
        )

    def submit(self, prompt: tuple[int, ...], spec: SamplingSpec = GREEDY, **rest: Any) -> int:
        return self.reserve(prompt, spec, **rest).seq_id

    def reserve(
        self, prompt: tuple[int, ...], spec: SamplingSpec = GREEDY, **rest: Any
    ) -> Reservation:
        return self.add(SequenceRequest(prompt_ids=prompt, spec=spec, **rest))

    def step(self) -> bool:
        stepped = super().step()
        assert self.check_integrity() == []
        return stepped

    def run_dry(self, most: int = 2000) -> None:
        """Step until there is nothing to do."""
        for _ in range(most):
            if not self.step():
                return
        raise AssertionError(f"still busy after {most} steps")

    def tokens(self, seq_id: int) -> list[int]:
        """The ids sampled for a sequence here, checked to be numbered without a gap."""
        sampled = [e for e in self.events if isinstance(e, TokenSampled) and e.seq_id == seq_id]
        assert all(b.index == a.index + 1 for a, b in pairwise(sampled))
        return [e.token_id for e in sampled]


def hand_off(source: Engine, taken: Reservation, target: Engine, wanted: Reservation) -> None:
    """Copy the KV that ``wanted`` lacks, as a transfer would."""
    assert isinstance(source.runner, MockRunner) and isinstance(target.runner, MockRunner)
    first = wanted.hit_tokens // BLOCK
    from_blocks, to_blocks = list(taken.block_table[first:]), list(wanted.block_table[first:])
    target.runner.store.pool[:, to_blocks] = source.runner.store.pool[:, from_blocks]
