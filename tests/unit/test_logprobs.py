"""Log probabilities: the numbers, on the host and on a device, and through the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.sampling import SamplingSpec
from model.engine.events import TokenSampled
from model.engine.plan import Sample, StepPlan
from model.sampling.device import Pending, score
from model.sampling.logprobs import logprobs
from model.sampling.sampler import sample
from tests.mock_engines import SteppedEngine
from tests.reference import make_checkpoint
from tests.runners import Driver

VOCAB = 300
PROMPT = tuple(range(40, 51))


@given(st.integers(0, 500), st.integers(0, 20), st.sampled_from([0.0, 1.0, 60.0]))
def test_they_are_those_of_the_softmax(seed: int, count: int, spread: float) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    exact = logits.double().log_softmax(-1).numpy()
    found = logprobs(logits.numpy(), seed % VOCAB, count)
    assert found.logprob == pytest.approx(exact[seed % VOCAB], abs=1e-9)
    ranked = sorted(range(VOCAB), key=lambda i: (-logits[i].item(), i))[:count]
    assert [i for i, _ in found.top] == ranked
    assert [value for _, value in found.top] == pytest.approx(exact[ranked].tolist(), abs=1e-9)


def test_far_apart_logits_stay_finite() -> None:
    found = logprobs(np.array([3e38, -3e38], dtype=np.float32), 1, 5)
    assert np.isfinite(found.logprob) and [i for i, _ in found.top] == [0, 1]


@settings(deadline=None)
@given(st.integers(0, 200), st.lists(st.sampled_from([None, 0, 3, 20]), min_size=1, max_size=6))
def test_a_device_tells_what_the_host_does(seed: int, counts: list[int | None]) -> None:
    """Greedy, drawn and bent rows; what bends the draw does not change what is told."""
    logits = torch.randn(len(counts), VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    specs = [
        SamplingSpec(
            temperature=(0.0, 1.0, 0.7)[i % 3],
            seed=seed,
            logit_bias={5: 90.0} if i % 2 else {},
            logprobs=count,
        )
        for i, count in enumerate(counts)
    ]
    asked = [(row, Sample(spec, PROMPT, ())) for row, spec in enumerate(specs)]
    pending = Pending(score(logits), asked)
    tokens = pending.tokens(sample)
    told = pending.logprobs(tokens)
    assert sorted(told) == [i for i, count in enumerate(counts) if count is not None]
    for i, found in told.items():
        token, count = tokens[i], counts[i]
        assert isinstance(token, int) and count is not None
        host = logprobs(logits[i].numpy(), token, count)
        assert found.logprob == pytest.approx(host.logprob, abs=1e-6)
        assert [j for j, _ in found.top] == [j for j, _ in host.top]


def test_a_row_that_failed_is_told_nothing_of() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, 9] = torch.nan
    asked = [(row, Sample(SamplingSpec(temperature=0, logprobs=1), PROMPT, ())) for row in (0, 1)]
    pending = Pending(score(logits), asked)
    assert list(pending.logprobs(pending.tokens(sample))) == [1]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_runner_tells_them_of_the_logits_before_any_bias(
    tmp_path: Path, deterministic: bool
) -> None:
    path = make_checkpoint("llama3", tmp_path)
    plain, told = (Driver.load(path, deterministic=deterministic) for _ in range(2))
    expected = plain.prefill(0, PROMPT)
    piece = told.piece(0, PROMPT, sample=True)
    spec = SamplingSpec(temperature=0, logit_bias={3: 50.0}, logprobs=2)
    piece.sample = Sample(spec, PROMPT, ())
    result = told.runner.run(StepPlan(1, (piece,)), lambda layer: None)
    assert result.logprobs[0] == logprobs(expected, result.tokens[0], 2)


def test_each_choice_and_each_step_of_an_engine_has_its_own() -> None:
    engine = SteppedEngine()
    spec = SamplingSpec(temperature=1.0, max_tokens=4, logprobs=1)
    engine.submit(PROMPT, spec, more_choices=(1, 2))
    quiet = engine.submit(PROMPT, SamplingSpec(temperature=0, max_tokens=2))
    engine.run_dry()
    sampled = [event for event in engine.events if isinstance(event, TokenSampled)]
    assert len(sampled) == 3 * 4 + 2
    for event in sampled:
        if event.seq_id == quiet:
            assert event.logprobs is None
        else:
            assert event.logprobs is not None and event.logprobs.logprob == -event.token_id / 64
