"""Masks made beside the step: what the sampler finds is what it would have computed."""

from __future__ import annotations

import json
import threading

import pytest

from baton.errors import InvalidRequest
from baton.grammar_limits import GrammarLimits
from baton.grammars import Constraint, Grammars
from baton.sampling import SamplingSpec
from model.engine.masks import MasksAhead
from model.engine.plan import Sample, Slice, StepPlan
from tests.fakes import EOS, VOCAB_SIZE, byte_tokenizer, ids

WORDS = json.dumps({"grammars": [{"lark_grammar": 'start: ("ab" | "ba")+'}]})


@pytest.fixture
async def constraint() -> Constraint:
    limits = GrammarLimits(bytes=1000, states=1000, kept=1)
    grammars = Grammars(byte_tokenizer().to_str, VOCAB_SIZE, limits)
    begun = await grammars.begin(WORDS, (EOS,))
    grammars.close()
    return begun


def plan(*samples: Sample) -> StepPlan:
    slices = [
        Slice(seq_id=i, token_ids=[1], start=0, block_table=[0], sample=sample)
        for i, sample in enumerate(samples)
    ]
    return StepPlan(step=1, slices=tuple(slices))


class Counting(Constraint):
    """Says on which threads it was asked."""

    def __init__(self, of: Constraint) -> None:
        super().__init__(of._matcher.deep_copy())
        self.asked_on: list[str] = []

    def allowed(self, generated_ids: object) -> bytes:
        self.asked_on.append(threading.current_thread().name)
        return super().allowed(generated_ids)  # type: ignore[arg-type]


async def test_every_mask_of_a_step_is_made_by_the_time_it_is_over(constraint: Constraint) -> None:
    masks, free = MasksAhead(), Sample(SamplingSpec(), (1,), [])
    held = [Counting(constraint) for _ in range(3)]
    generated = [ids("ab"), ids("a"), ids("abb")]
    asked = [
        Sample(SamplingSpec(), (1,), g, constraint=c) for c, g in zip(held, generated, strict=True)
    ]
    with masks.beside(plan(free, *asked)):
        found = [constraint.fork().allowed(g) for g in generated]
    assert all(one.asked_on == ["masks_0"] for one in held)
    assert [one.allowed(g) for one, g in zip(held, generated, strict=True)] == found
    masks.close()


async def test_what_breaks_its_grammar_is_said_to_the_sampler_alone(constraint: Constraint) -> None:
    masks, broken = MasksAhead(), Sample(SamplingSpec(), (1,), ids("aa"), constraint=constraint)
    with masks.beside(plan(broken)):
        pass
    said = []
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="generated token 1") as refused:
            constraint.allowed(broken.generated_ids)
        said.append(str(refused.value))
    assert said[0] == said[1]
    masks.close()
