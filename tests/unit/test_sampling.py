"""The sampler against a plain, slow statement of its rules, and as a pure function."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import InternalError, InvalidRequest
from baton.sampling import SamplingSpec
from model.engine.plan import Sample
from model.sampling.draw import uniform
from model.sampling.sampler import Distribution, distribution, sample

Logits = npt.NDArray[np.float32]


def asks(prompt: tuple[int, ...] = (), generated: tuple[int, ...] = (), **spec: Any) -> Sample:
    return Sample(SamplingSpec(**spec), prompt, generated)


def logits(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def plain_scores(values: Logits, what: Sample) -> list[float]:
    """Penalties, bias and mask, one id at a time."""
    spec, scores = what.spec, [float(v) for v in values]
    for token in {*what.prompt_ids, *what.generated_ids}:
        x = scores[token]
        scores[token] = x / spec.repetition_penalty if x > 0 else x * spec.repetition_penalty
    for token, count in Counter(what.generated_ids).items():
        scores[token] -= spec.presence_penalty + spec.frequency_penalty * count
    for token, bias in spec.logit_bias.items():
        scores[token] += bias
    if len(what.generated_ids) < spec.min_tokens:
        for token in spec.eos_ids:
            scores[token] = -math.inf
    return scores


def plain_kept(values: Logits, what: Sample) -> dict[int, float]:
    """id -> probability of what may be drawn, by sorting everything."""
    spec, scores = what.spec, plain_scores(values, what)
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if spec.top_k:
        ranked = ranked[: spec.top_k]
    top = scores[ranked[0]]
    weight = {i: math.exp((scores[i] - top) / spec.temperature) for i in ranked}
    if spec.top_p < 1:
        mass, kept, target = 0.0, [], spec.top_p * sum(weight.values())
        for i in ranked:
            kept.append(i)
            mass += weight[i]
            if mass >= target:
                break
        ranked = kept
    ranked = [i for i in ranked if weight[i] >= spec.min_p]
    total = sum(weight[i] for i in ranked)
    return {i: weight[i] / total for i in ranked}


def probabilities(kept: Distribution) -> dict[int, float]:
    shares = kept.weights / kept.weights.sum()
    return dict(zip(kept.ids.tolist(), shares.tolist(), strict=True))


# -- greedy --------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_among_the_largest() -> None:
    assert sample(logits(1, 3, 2, 3), asks(temperature=0)) == 1
    assert sample(logits(0, 0, 0), asks(temperature=0)) == 0


def test_greedy_after_penalties_bias_and_mask() -> None:
    values = logits(3.0, 2.9, -1.0, 2.0)
    assert sample(values, asks((0,), temperature=0, repetition_penalty=1.2)) == 1
    assert sample(values, asks((), (0,), temperature=0, presence_penalty=0.2)) == 1
    assert sample(values, asks((0,), (), temperature=0, presence_penalty=2.0)) == 0
    assert sample(values, asks((), (0, 0), temperature=0, frequency_penalty=0.1)) == 1
    assert sample(values, asks(temperature=0, logit_bias={2: 100.0})) == 2
    masked = {"temperature": 0, "min_tokens": 2, "eos_ids": (0, 99), "max_tokens": 9}
    assert sample(values, asks((), (3,), **masked)) == 1
    assert sample(values, asks((), (3, 3), **masked)) == 0


def test_repetition_penalty_pushes_negative_logits_down() -> None:
    kept = distribution(logits(-1, -1), asks((0, 0, 500), repetition_penalty=2.0))
    assert probabilities(kept)[0] == pytest.approx(1 / (1 + math.e))


def test_an_extreme_repetition_penalty_stays_finite() -> None:
    for temperature in (0.0, 1.0):
        what = asks((1,), (), temperature=temperature, repetition_penalty=5e-324)
        assert sample(logits(3, 2, 1), what) == 1


# -- filters -------------------------------------------------------------------------------


def test_ties_rank_by_lower_id() -> None:
    values = logits(1, 2, 2, 2, 0)
    assert distribution(values, asks(top_k=2)).ids.tolist() == [1, 2]
    assert distribution(values, asks(top_p=0.3)).ids.tolist() == [1, 2]
    # Weights this close round to the same float64; the scores still rank them.
    near = np.nextafter(np.float32([1e-9, 1e-9]), np.float32([0, 1]))
    assert distribution(near, asks(top_k=1, temperature=100)).ids.tolist() == [1]
    assert distribution(near, asks(top_p=1e-9, temperature=100)).ids.tolist() == [1]


def test_top_p_keeps_the_crossing_token() -> None:
    values = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    assert distribution(values, asks(top_p=0.49)).ids.tolist() == [0]
    assert distribution(values, asks(top_p=0.51)).ids.tolist() == [0, 1]
    assert distribution(values, asks(top_p=0.999)).ids.tolist() == [0, 1, 2]


def test_top_p_is_of_what_top_k_left() -> None:
    values = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    assert distribution(values, asks(top_k=2, top_p=0.56)).ids.tolist() == [0]
    assert distribution(values, asks(top_p=0.56)).ids.tolist() == [0, 1]


def test_min_p_is_relative_to_the_likeliest() -> None:
    values = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    assert distribution(values, asks(min_p=0.5)).ids.tolist() == [0, 1]
    assert distribution(values, asks(min_p=1.0)).ids.tolist() == [0]


spec_strategy = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 1, 3, 300, 1000]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.9999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.5]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, -0.5]),
        "logit_bias": st.sampled_from([{}, {0: 3.0, 2: -100.0}]),
        "min_tokens": st.sampled_from([0, 4]),
        "eos_ids": st.just((1,)),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([4, 17, 700]),
    st.booleans(),
    st.lists(st.integers(0, 3), max_size=6).map(tuple),
    spec_strategy,
)
def test_distribution_equals_the_plain_statement(
    seed: int, vocab: int, coarse: bool, generated: tuple[int, ...], spec: dict[str, Any]
) -> None:
    values = np.random.default_rng(seed).normal(0, 2, vocab)
    if coarse:  # many ties
        values = np.round(values)
    what = asks((0, 3), generated, **spec)
    kept = probabilities(distribution(values.astype(np.float32), what))
    plain = plain_kept(values.astype(np.float32), what)
    likely = {i for i, p in plain.items() if p > 1e-12}
    border = set(kept) ^ set(plain)
    # Only rounding of the mass at the crossing may move the border, by tokens of no mass.
    assert all(i not in likely or plain[i] < 1e-9 for i in border)
    assert all(kept[i] == pytest.approx(plain[i], rel=1e-6) for i in likely & set(kept))


def filtered(values: Logits, what: Sample) -> Distribution:
    """The rules with numpy, everything sorted and nothing spared; to be matched bit for bit."""
    spec, scores = what.spec, values.astype(np.float64)
    ranked = np.lexsort((np.arange(len(scores)), -scores))
    ids = np.sort(ranked[: spec.top_k or len(scores)])
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((scores[ids] - scores.max()) / spec.temperature)
    if spec.top_p < 1:
        mass = np.cumsum(np.sort(weights)[::-1])
        count = int(np.searchsorted(mass, spec.top_p * weights.sum())) + 1
        kept = np.isin(ids, ranked[:count])
        ids, weights = ids[kept], weights[kept]
    likely = weights >= spec.min_p
    return Distribution(ids[likely], weights[likely])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 17, 5000, 40_000]),
    st.sampled_from([0.01, 0.5, 3.0, 30.0]),
    st.sampled_from([None, 1.0, 0.125]),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([1e-300, 1e-7, 0.7, 1.0, 100.0]),
            "top_k": st.sampled_from([0, 0, 1, 50, 6000]),
            "top_p": st.sampled_from([1e-9, 0.5, 0.9, 0.999999, 1 - 1e-12, 1.0]),
            "min_p": st.sampled_from([0.0, 0.0, 0.001, 0.5, 1.0]),
        }
    ),
)
def test_what_is_spared_changes_no_bit(
    seed: int, vocab: int, spread: float, coarse: float | None, spec: dict[str, Any]
) -> None:
    values = np.random.default_rng(seed).normal(0, spread, vocab)
    if coarse is not None:  # many ties
        values = np.round(values / coarse) * coarse
    values = values.astype(np.float32)
    found, expected = (f(values, asks(**spec)) for f in (distribution, filtered))
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.weights.tobytes() == expected.weights.tobytes()


def test_a_tiny_temperature_is_almost_greedy() -> None:
    values = np.linspace(-50, 50, 1000).astype(np.float32)
    assert sample(values, asks(temperature=1e-300)) == 999


# -- the draw ------------------------------------------------------------------------------


def test_uniform_is_a_pure_function_of_all_three() -> None:
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    others = [uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(2**63 - 1, 2, 3)]
    assert len({uniform(1, 2, 3), *others}) == 5
    draws = [uniform(7, position, 0) for position in range(4000)]
    assert min(draws) >= 0 and max(draws) < 1
    assert np.mean(draws) == pytest.approx(0.5, abs=0.02)
    assert np.var(draws) == pytest.approx(1 / 12, abs=0.01)


def test_the_draw_depends_on_the_border_between_prompt_and_generated_only_by_their_sum() -> None:
    values = np.random.default_rng(0).normal(0, 2, 500).astype(np.float32)
    first = [sample(values, asks((1, 2), (3,) * n, seed=5)) for n in range(20)]
    again = [sample(values, asks((1, 2, *(3,) * n), (), seed=5)) for n in range(20)]
    assert first == again and len(set(first)) > 5


def test_pick_follows_the_shares_in_vocabulary_order() -> None:
    kept = Distribution(np.array([3, 5, 9]), np.array([1.0, 0.0, 3.0]))
    assert [kept.pick(u) for u in (0.0, 0.2499, 0.25, 0.999, 1 - 2**-53)] == [3, 3, 9, 9, 9]
    assert kept.border_distance(0.3) == pytest.approx(0.05)
    assert Distribution(np.array([3]), np.array([2.0])).border_distance(0.5) == 1.0


def test_pick_never_names_an_id_without_weight() -> None:
    for zeros in (1, 300):
        weights = np.concatenate((np.zeros(zeros), np.full(3, 0.1), np.zeros(zeros)))
        kept = Distribution(np.arange(len(weights)), weights)
        for u in (0.0, 0.5, 1 - 2**-53):
            assert zeros <= kept.pick(u) < zeros + 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True))
def test_pick_equals_one_running_sum(seed: int, u: float) -> None:
    weights = np.random.default_rng(seed).random(1000)
    kept = Distribution(np.arange(1000), weights)
    if kept.border_distance(u) > 1e-12:
        cumulative = np.cumsum(weights)
        assert kept.pick(u) == int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))


def test_frequencies_follow_the_probabilities() -> None:
    values = np.log(np.array([0.6, 0.3, 0.1])).astype(np.float32)
    counts = Counter(sample(values, asks((0,) * n, seed=9)) for n in range(3000))
    assert [counts[i] / 3000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_non_finite_logit_is_named(bad: float, temperature: float) -> None:
    with pytest.raises(InternalError, match="the logit of token 1 is"):
        sample(logits(0, bad, 0), asks(temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masking_everything_is_an_error(temperature: float) -> None:
    with pytest.raises(InternalError, match="every token is masked"):
        sample(logits(0, 0), asks(temperature=temperature, min_tokens=1, eos_ids=(0, 1)))


@pytest.mark.parametrize("token", [-1, 2])
def test_a_bias_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary has 2"):
        sample(logits(0, 0), asks(logit_bias={token: 1.0}))
