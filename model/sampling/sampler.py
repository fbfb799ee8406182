"""From logits to the next token: one pure function for prefill and decode workers alike.

The order of operations is that of Hugging Face generate (and, up to ties, of vLLM):

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
kept set never depends on how a sort breaks ties. No step sorts the whole vocabulary unless
top_p truly needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton.errors import InternalError
from model.engine.plan import Sample
from model.sampling.draw import uniform
from model.sampling.penalties import Ids, Logits, adjusted, changes_logits

#: top_p first looks at so many of the most likely tokens, then, if it must, at all.
_FIRST_LOOK = 256
#: Weights are summed in vocabulary order, so many at a time: 10 times as fast as one by one.
_CHUNK = 256


def sample(logits: npt.NDArray[np.float32], sample: Sample) -> int:
    """The next token id, given ``logits`` float32 [vocab] of the last position. Pure.

    Raises InternalError naming the first non-finite logit, and when the min_tokens mask leaves
    no token; InvalidRequest for a logit_bias outside the vocabulary.
    """
    require_finite(logits)
    if sample.spec.greedy:
        scores = adjusted(logits, sample) if changes_logits(sample) else logits
        return int(np.argmax(scores))  # the first, hence lowest id, among the largest
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

    Raises what ``adjusted`` raises.
    """
    spec = sample.spec
    scores = adjusted(logits, sample)
    largest = scores.max()
    ids: Ids = np.arange(len(scores), dtype=np.int64)
    if 0 < spec.top_k < len(ids):
        ids = top_k(scores, spec.top_k)
        scores = scores[ids]
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: weight 0, rightly
        weights = np.exp((scores - largest) / spec.temperature)
    if spec.top_p < 1.0:
        count = top_p_count(weights, spec.top_p)
        if count < len(ids):
            # By score, not by weight: dividing by the temperature may round two into a tie.
            kept = top_k(scores, count)
            ids, weights = ids[kept], weights[kept]
    if spec.min_p > 0.0:
        likely = weights >= spec.min_p  # the weight of the most likely is 1
        ids, weights = ids[likely], weights[likely]
    return Distribution(ids, weights)


def top_k(scores: Logits, k: int) -> Ids:
    """The indices of the k largest scores, 0 < k < len(scores), ties by lower index; ascending.

    O(vocab): the k-th largest value by selection, all above it, and the first of its equals.
    """
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    return np.sort(np.concatenate((above, equal)))


def top_p_count(weights: Logits, p: float) -> int:
    """How many of the largest weights it takes to reach p of their sum, the crossing one
    included; at least 1.

    Peaked distributions, the common case, are decided by the first look. The running sum is
    the same in both looks, and so is the answer.
    """
    total, size = p * weights.sum(), len(weights)
    likeliest = weights
    if size > _FIRST_LOOK:
        likeliest = np.partition(weights, size - _FIRST_LOOK)[size - _FIRST_LOOK :]
    mass = np.cumsum(np.sort(likeliest)[::-1])
    if mass[-1] < total:
        mass = np.cumsum(np.sort(weights)[::-1])
    return min(int(np.searchsorted(mass, total, side="left")) + 1, size)


def _first_above(cumulative: Logits, target: float) -> int:
    """Index of the first entry above ``target``, which may have been rounded up to the last
    entry: then the first that reaches that one, so that no index without weight is named."""
    index = int(np.searchsorted(cumulative, target, side="right"))
    return min(index, int(np.searchsorted(cumulative, cumulative[-1], side="left")))
