"""Sampling for a device against the host's sampler: the same tokens, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import BatonError, InternalError, InvalidRequest
from baton.grammars import Constraint
from baton.sampling import SamplingSpec
from model.engine.plan import Sample
from model.sampling import device
from model.sampling.device import Pending, score
from model.sampling.draw import uniform
from model.sampling.sampler import distribution, sample

VOCAB = 700


def asks(**spec: Any) -> Sample:
    return Sample(SamplingSpec(**spec), (1, 2, 3), (4, 4))


def settle(logits: torch.Tensor, samples: list[Sample]) -> list[int | BatonError]:
    return Pending(score(logits), list(enumerate(samples))).tokens(sample)


specs = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0, 100.0]),
        "top_k": st.sampled_from([0, 1, 3, 300, 5000]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.9999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.5, 1.0]),
        "seed": st.integers(0, 2**63 - 1),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "logit_bias": st.sampled_from([{}, {}, {7: 3.0}]),
    }
)


@settings(deadline=None)
@given(
    st.lists(specs, min_size=1, max_size=5),
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([0.0, 1.0, 8.0]),
)
def test_every_row_gets_the_host_s_token(
    wanted: list[dict[str, Any]], seed: int, dtype: torch.dtype, spread: float
) -> None:
    """bfloat16 logits tie often, and a spread of 0 makes all of them tie."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(wanted), VOCAB, generator=random) * spread).to(dtype)
    logits[:, :10] = -logits[:, :10].abs() * 0.0  # some are -0.0
    samples = [asks(**spec) for spec in wanted]
    for found, row, what in zip(settle(logits, samples), logits, samples, strict=True):
        host = row.float().numpy()
        expected = sample(host, what)
        if found != expected:  # promise C: at a border, within the noise of summation
            assert not what.spec.greedy
            number = uniform(what.spec.seed, 5, 0)
            assert distribution(host, what).border_distance(number) < 1e-12


class Only(Constraint):
    """Some ids, whatever was generated."""

    def __init__(self, *ids: int) -> None:
        self._bits = np.packbits(np.isin(np.arange(VOCAB), ids), bitorder="little").tobytes()

    def allowed(self, generated_ids: Sequence[int]) -> bytes:
        return self._bits


def test_rows_with_a_grammar_keep_to_it() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5))
    free = [asks(temperature=0.0), asks(temperature=1.0, seed=2), asks(temperature=1.0, seed=2)]
    held = [replace(asked, constraint=Only(17, 600)) for asked in free]
    assert not {17, 600} & {*settle(logits, free)}
    assert {*settle(logits, held)} <= {17, 600}
    assert settle(logits, [held[0], *free[1:]])[1:] == settle(logits, free)[1:]


def test_rows_that_are_drawn_together_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(7, VOCAB, generator=random)
    samples = [asks(temperature=1.0, seed=i, top_p=0.9) for i in range(7)]
    whole = settle(logits, samples)
    monkeypatch.setattr(device, "_AT_ONCE", 3)
    assert settle(logits, samples) == whole
    assert len(set(whole)) > 1


def test_only_rows_that_are_asked_for_are_answered() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[1, 5] = logits[3, 6] = 1.0
    logits[0, 0] = torch.nan
    greedy = asks(temperature=0.0)
    assert Pending(score(logits), [(3, greedy), (1, greedy)]).tokens(sample) == [6, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 3}])
def test_a_logit_that_is_not_finite_fails_its_row_alone(bad: float, spec: dict[str, Any]) -> None:
    logits = torch.arange(3 * VOCAB, dtype=torch.float32).view(3, VOCAB)
    logits[1, 33] = bad
    first, failed, last = settle(logits, [asks(**spec)] * 3)
    assert isinstance(failed, InternalError) and "token 33" in failed.message
    assert isinstance(first, int) and isinstance(last, int)


def test_what_the_host_s_sampler_refuses_fails_its_row_alone() -> None:
    samples = [asks(temperature=0.0, logit_bias={VOCAB: 1.0}), asks(temperature=0.0)]
    refused, fine = settle(torch.eye(2, VOCAB), samples)
    assert isinstance(refused, InvalidRequest) and fine == 1


def test_a_number_at_the_very_end_draws_a_token_that_has_a_weight() -> None:
    logits = torch.full((1, VOCAB), 0.0)
    logits[0, 300:] = -1e30
    terms = torch.tensor([[1.0, VOCAB, 1.0, 0.0, np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    assert device.draw(logits, terms, ranked=False).tolist() == [299]
    terms[0, 4] = 1.0  # as if rounded up to the sum
    assert device.draw(logits, terms, ranked=False).tolist() == [299]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    shares: npt.NDArray[np.float64] = np.array([0.5, 0.3, 0.15, 0.05])
    logits = torch.from_numpy(np.log(shares)).float().expand(2000, 4)
    samples = [asks(temperature=1.0, seed=seed) for seed in range(2000)]
    found = np.bincount(np.array(settle(logits, samples)), minlength=4) / 2000
    assert np.abs(found - shares).max() < 0.04
