"""The cost model in whole picoseconds: one step, or many like it in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from bench.costs import Costs
from bench.simulate.clock import ps
from model.engine.plan import Slice, StepPlan


@dataclass(frozen=True, slots=True)
class Prices:
    """As ``Costs``, in picoseconds."""

    step: int
    prefill_token: int
    prefill_pair: int
    decode: int
    context_token: int

    @classmethod
    def of(cls, costs: Costs, longer: float = 0.0) -> Prices:
        """Where everything takes longer by that share."""
        return cls(
            ps(costs.step_s * (1 + longer)),
            ps(costs.prefill_token_s * (1 + longer)),
            ps(costs.prefill_pair_s * (1 + longer)),
            ps(costs.decode_s * (1 + longer)),
            ps(costs.context_token_s * (1 + longer)),
        )

    def plan(self, plan: StepPlan, decodes: int) -> int:
        """A step whose first ``decodes`` slices are decode steps, the others of prompts."""
        context = sum(part.start + 1 for part in plan.slices[:decodes])
        prompts = sum(self.prompt(part) for part in plan.slices[decodes:])
        return self.decodes(decodes, context) + prompts

    def prompt(self, part: Slice) -> int:
        """A slice of a prompt."""
        count = len(part.token_ids)
        pairs = count * part.start + count * (count - 1) // 2
        return self.prefill_token * count + self.prefill_pair * pairs

    def decodes(self, sequences: int, context: int) -> int:
        """A step of so many sequences that read back ``context`` tokens together."""
        return self.step + self.decode * sequences + self.context_token * context

    def steps(self, count: int, sequences: int, context: int) -> int:
        """``count`` such steps in a row: each sequence is a token longer in the next one."""
        growth = self.context_token * sequences * (count * (count - 1) // 2)
        return count * self.decodes(sequences, context) + growth

    def within(self, time: int, sequences: int, context: int, most: int) -> int:
        """How many such steps, up to ``most``, are over after ``time``."""
        first, growth = self.decodes(sequences, context), self.context_token * sequences
        if growth:  # the root of: steps(count) = time
            linear = 2 * first - growth
            count = (isqrt(linear * linear + 8 * growth * time) - linear) // (2 * growth)
        else:
            count = time // first if first else most
        return min(count, most)
