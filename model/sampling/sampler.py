"""From logits to the next token: one pure function for prefill and decode workers alike.

The order of operations is that of Hugging Face generate (and, up to ties, of vLLM):

    0. where a grammar holds the answer, other ids are left out (allowed.py)
    1. repetition, presence and frequency penalty      }
    2. logit_bias                                      }  penalties.py
    3. min_tokens: end-of-sequence ids become -inf     }
       greedy (temperature 0) stops here: the lowest id among the largest logits
    4. temperature
    5. top_k: the k largest
    6. top_p: of what is left, the most likely until their mass reaches p, the crossing one too
    7. min_p: drop what is less likely than min_p times the most likely
    8. one uniform number (draw.py) picks from what is left, summed in vocabulary order

Everything after 1 is float64. Wherever tokens are ranked, equal logits rank by lower id, so the
kept set never depends on how a sort breaks ties. No step sorts the whole vocabulary.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton.errors import InternalError
from baton.sampling import SamplingSpec
from model.engine.plan import Sample
from model.sampling.allowed import allowed_ids
from model.sampling.draw import uniform
from model.sampling.penalties import Ids, Logits, adjusted, changes_logits

#: Weights are summed in vocabulary order, so many at a time: 10 times as fast as one by one.
_CHUNK = 256
#: top_p leaves tokens aside at first that are exp(_DEPTH) times less likely than the most likely.
_DEPTH = 25.0
#: It sorts so many tokens; of more, only those near the crossing.
_SORTED = 4096
#: Those it finds by the highest bits of their weights: sign, exponent, 6 bits of the fraction.
_BIN_SHIFT = 46
#: Sums of all weights in different orders differ by less than this share.
_NOISE = 1e-9

Scores = npt.NDArray[np.floating]


def sample(logits: npt.NDArray[np.float32], sample: Sample) -> int:
    """The next token id, given ``logits`` float32 [vocab] of the last position. Pure.

    Raises InternalError naming the first non-finite logit, and when the min_tokens mask leaves
    no token; InvalidRequest for a logit_bias outside the vocabulary; what ``allowed_ids`` raises.
    """
    require_finite(logits)
    if sample.spec.greedy:
        tokens = _candidates(logits, sample)
        # The first, hence lowest id, among the largest.
        return int(tokens.ids[np.argmax(tokens.scores)])
    position = len(sample.prompt_ids) + len(sample.generated_ids)
    draw = uniform(sample.spec.seed, position, sample.choice_index)
    return distribution(logits, sample).pick(draw)


def require_finite(logits: npt.NDArray[np.float32]) -> None:
    """Raise InternalError naming the first logit that is NaN or infinite."""
    finite = np.isfinite(logits)
    if not finite.all():
        token = int(np.argmin(finite))
        raise InternalError(f"the logit of token {token} is {logits[token]}")


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a token is drawn from: the kept ids in vocabulary order, each with its share."""

    ids: Ids  #: int64 [kept], ascending
    weights: Logits  #: float64 [kept], not normalised; at least one is above 0

    def pick(self, draw: float) -> int:
        """The id whose share of [0, 1) contains ``draw``; never one of weight 0."""
        starts = np.arange(0, len(self.ids), _CHUNK)
        chunks = np.cumsum(np.add.reduceat(self.weights, starts))
        target = draw * chunks[-1]
        chunk = _first_above(chunks, target)
        below = chunks[chunk - 1] if chunk else 0.0
        inside = self.weights[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        return int(self.ids[chunk * _CHUNK + _first_above(below + np.cumsum(inside), target)])

    def border_distance(self, draw: float) -> float:
        """How far ``draw`` is from the nearest place where ``pick`` changes, in [0, 1]: below
        the numeric noise of two runs, they may rightly pick differently (promise C)."""
        cumulative = np.cumsum(self.weights)
        borders = cumulative[:-1] / cumulative[-1]
        return float(np.abs(borders - draw).min()) if len(borders) else 1.0


def distribution(logits: npt.NDArray[np.float32], sample: Sample) -> Distribution:
    """Steps 1 to 7, for a spec that is not greedy. Pure; ``logits`` must be finite.

    Raises what ``adjusted`` and ``allowed_ids`` raise.
    """
    spec = sample.spec
    tokens = _candidates(logits, sample)
    largest = np.float64(tokens.scores.max())
    if 0 < spec.top_k < len(tokens.ids):
        tokens = tokens.only(top_k(tokens.scores, spec.top_k))
    if spec.top_p < 1.0:
        tokens, weights = top_p(tokens, largest, spec)
    else:
        if spec.min_p > 0.0:  # that most have less can be seen without their weights
            tokens = tokens.down_to(largest + (math.log(spec.min_p) - 1) * spec.temperature)
        weights = _weights(tokens.scores, largest, spec.temperature)
    if spec.min_p > 0.0:
        likely = np.flatnonzero(weights >= spec.min_p)  # the weight of the most likely is 1
        tokens, weights = tokens.only(likely), weights.take(likely)
    return Distribution(tokens.ids, weights)


def _candidates(logits: npt.NDArray[np.float32], sample: Sample) -> _Tokens:
    """Steps 0 to 3: the ids that can be drawn at all."""
    scores: Scores = adjusted(logits, sample) if changes_logits(sample) else logits
    ids = allowed_ids(sample, len(scores))
    if ids is None:
        return _Tokens(_every_id(len(scores)), scores)
    return _Tokens(ids, scores.take(ids))


@functools.lru_cache(maxsize=4)
def _every_id(vocab: int) -> Ids:
    ids = np.arange(vocab, dtype=np.int64)
    ids.flags.writeable = False
    return ids


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Some of the vocabulary: ids, ascending, and their scores."""

    ids: Ids
    scores: Scores

    def only(self, places: Ids) -> _Tokens:
        """Those at ``places``, ascending."""
        if len(places) == len(self.ids):
            return self
        return _Tokens(self.ids.take(places), self.scores.take(places))

    def down_to(self, low: float) -> _Tokens:
        """All with a score from ``low`` on; with others, where there are few of those."""
        with np.errstate(over="ignore"):
            bound = np.nextafter(self.scores.dtype.type(low), -np.inf, dtype=self.scores.dtype)
        near = self.scores >= bound
        few = np.count_nonzero(near) < len(near) // 2
        return self.only(np.flatnonzero(near)) if few else self


def _weights(scores: Scores, largest: np.float64, temperature: float) -> Logits:
    """exp((scores - largest) / temperature), not normalised."""
    weights = np.subtract(scores, largest, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: weight 0, rightly
        weights /= temperature
        return np.exp(weights, out=weights)


def top_k(scores: Scores, k: int) -> Ids:
    """The indices of the k largest scores, 0 < k <= len(scores), ties by lower index; ascending.

    O(vocab): the k-th largest value by selection, all above it, and the first of its equals.
    """
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    kept = scores > threshold
    equal = np.flatnonzero(scores == threshold)
    kept[equal[: k - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def top_p(tokens: _Tokens, largest: np.float64, spec: SamplingSpec) -> tuple[_Tokens, Logits]:
    """The most likely tokens that it takes to reach top_p of the mass, the crossing one included,
    at least one; with their weights.

    That is: weights are added up from the largest on until top_p times their sum in vocabulary
    order is reached. Tokens rank by score, not by weight: dividing by the temperature may round
    two into a tie. Looking at fewer tokens first gives the same answer or none.
    """
    near = tokens.down_to(largest - _DEPTH * spec.temperature)
    weights = _weights(near.scores, largest, spec.temperature)
    total = weights.sum()
    unseen = (len(tokens.ids) - len(near.ids)) * math.exp(-_DEPTH)
    # All others together have less than half of what may be left out.
    likely = weights >= (1 - spec.top_p) * total / (2 * len(weights))
    if np.count_nonzero(likely) < len(weights) // 2:
        places = np.flatnonzero(likely)
        near, weights = near.only(places), weights.take(places)
    count = _crossing(weights, spec.top_p * total, _NOISE * total + unseen)
    if count is None:
        near, weights = tokens, _weights(tokens.scores, largest, spec.temperature)
        mass = np.cumsum(np.sort(weights)[::-1])
        count = int(np.searchsorted(mass, spec.top_p * weights.sum())) + 1
    kept = top_k(near.scores, min(count, len(weights)))
    return near.only(kept), weights.take(kept)


def _crossing(weights: Logits, target: float, noise: float) -> int | None:
    """How many of the largest ``weights``, added up from the largest on, it takes to reach
    ``target``; None where ``noise`` in the sums may decide."""
    first, before = 0, 0.0
    if len(weights) > _SORTED:
        # Whole bins are added up, and only the tokens of that where it is reached one by one.
        # Positive floats rank as their bits do.
        bins = weights.view(np.int64) >> _BIN_SHIFT
        bins -= bins.min()
        mass: Logits = np.cumsum(np.bincount(bins, weights)[::-1])
        place = int(np.searchsorted(mass, target))
        if place == len(mass):
            return None
        crossed = len(mass) - 1 - place
        first = int(np.count_nonzero(bins > crossed))
        before = float(mass[place - 1]) if place else 0.0
        weights = weights[bins == crossed]
    mass = before + np.cumsum(np.sort(weights)[::-1])
    place = int(np.searchsorted(mass, target))
    if place == len(mass) or mass[place] - target <= noise:
        return None
    if target - (mass[place - 1] if place else before) <= noise and first + place:
        return None
    return first + place + 1


def _first_above(cumulative: Logits, target: float) -> int:
    """Index of the first entry above ``target``, which may have been rounded up to the last
    entry: then the first that reaches that one, so that no index without weight is named."""
    index = int(np.searchsorted(cumulative, target, side="right"))
    return min(index, int(np.searchsorted(cumulative, cumulative[-1], side="left")))
