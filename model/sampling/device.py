"""Sampling where the logits are: the function of ``sampler``, for many rows at once, in torch.

Greedy rows and seeded ones are settled on the device; a row with penalties, a bias, a mask or a
grammar goes to the host's sampler. Draws differ from the host's by the order of summation at most:
the uniform number is the host's own, ranks and ties are the same, weights are float64 and summed
in vocabulary order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.errors import BatonError
from baton.generation import TokenLogprobs
from model.engine.plan import Sample
from model.sampling.draw import uniform
from model.sampling.penalties import changes_logits

#: (logits float32 [vocab], what was asked) -> token id; raises BatonError to fail one sequence.
HostSampler = Callable[[npt.NDArray[np.float32], Sample], int]

_AT_ONCE = 32  # rows drawn together: at float64 and 128k tokens, 32 MiB for each intermediate


@dataclass(frozen=True, slots=True)
class Scores:
    """The logits of a step, and what every row needs of them. All on the device."""

    logits: Tensor  #: [n, vocab]
    best: Tensor  #: int64 [n], the lowest id among the largest
    low: Tensor  #: [n], NaN where any logit is
    high: Tensor  #: [n], likewise


def score(logits: Tensor) -> Scores:
    """For logits [n, vocab]."""
    low, high = torch.aminmax(logits, dim=-1)
    return Scores(logits, logits.argmax(-1), low, high)


class Pending:
    """Tokens on their way to the host."""

    def __init__(self, scores: Scores, asked: Sequence[tuple[int, Sample]]) -> None:
        """Enqueue what it takes to answer ``asked``, (row, what to draw); several may be of one
        row. Waits for nothing."""
        self._scores = scores
        self._asked = asked
        pure = [i for i, (_, sample) in enumerate(asked) if _is_pure(sample)]
        self._drawn = [i for i in pure if not asked[i][1].spec.greedy]
        self._bent = sorted({*range(len(asked))} - {*pure})
        finite = scores.low.isfinite() & scores.high.isfinite()
        self._finite = finite.to("cpu", non_blocking=True)
        self._best = scores.best.to("cpu", non_blocking=True)
        if self._drawn:
            ids = _draw(self._logits_of(self._drawn), [asked[i][1] for i in self._drawn])
            self._ids = ids.to("cpu", non_blocking=True)
        self._told = [i for i, (_, sample) in enumerate(asked) if sample.spec.logprobs is not None]
        if self._told:
            counts = [asked[i][1].spec.logprobs or 0 for i in self._told]
            self._ranked = _rank(self._logits_of(self._told), max(counts))
        if self._bent:
            self._logits = self._logits_of(self._bent).float().to("cpu", non_blocking=True)

    def tokens(self, host: HostSampler) -> list[int | BatonError]:
        """The token of each of ``asked``, in order, or why it has none.

        The device must be through with what was enqueued.
        """
        finite, best = self._finite.tolist(), self._best.tolist()
        ids = dict(zip(self._drawn, self._ids.tolist(), strict=True)) if self._drawn else {}
        bent = {i: place for place, i in enumerate(self._bent)}
        found: list[int | BatonError] = []
        for i, (row, sample) in enumerate(self._asked):
            try:
                if not finite[row]:  # the host's sampler says which logit it is
                    found.append(host(self._scores.logits[row].float().cpu().numpy(), sample))
                elif i in bent:
                    found.append(host(self._logits[bent[i]].numpy(), sample))
                else:
                    found.append(ids[i] if i in ids else best[row])
            except BatonError as error:
                found.append(error)
        return found

    def logprobs(self, tokens: Sequence[int | BatonError]) -> dict[int, TokenLogprobs]:
        """Where they were asked for, by the place among ``asked``; ``tokens`` is what they all
        got. As the host's, up to the order of summation; which of equals are among the most likely
        is the device's choice."""
        told = [(k, i, tokens[i]) for k, i in enumerate(self._told)]
        drawn = [(k, i, token) for k, i, token in told if not isinstance(token, BatonError)]
        if not drawn:
            return {}
        rows = [self._asked[i][0] for _, i, _ in drawn]
        chosen = self._scores.logits[rows, [token for *_, token in drawn]].double().tolist()
        totals, values, ids = (part.tolist() for part in self._ranked)
        found = dict[int, TokenLogprobs]()
        for (k, i, _), score in zip(drawn, chosen, strict=True):
            best = sorted((-value, token) for value, token in zip(values[k], ids[k], strict=True))
            count = self._asked[i][1].spec.logprobs or 0
            top = tuple((token, -value - totals[k]) for value, token in best[:count])
            found[i] = TokenLogprobs(score - totals[k], top)
        return found

    def _logits_of(self, which: Sequence[int]) -> Tensor:
        """The logits that some of ``asked`` are to be drawn from, [len(which), vocab]."""
        logits = self._scores.logits
        rows = np.array([self._asked[i][0] for i in which], dtype=np.int64)
        return logits[_sent(rows, logits.device)]


def _is_pure(sample: Sample) -> bool:
    return sample.constraint is None and not changes_logits(sample)


def _sent(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    host = torch.from_numpy(values)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def _rank(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm of each row's sum of weights [n], its ``count`` largest logits [n, count] and
    their ids; float64, on their way to the host."""
    totals = [part.double().logsumexp(-1) for part in torch.split(logits, _AT_ONCE)]
    best = logits.topk(min(count, logits.shape[1]), dim=-1)
    ranked = torch.cat(totals), best.values.double(), best.indices
    total, values, ids = (part.to("cpu", non_blocking=True) for part in ranked)
    return total, values, ids


def _draw(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """One token for each row, int64 [n]."""
    rows = [_terms(sample, logits.shape[1]) for sample in samples]
    terms = _sent(np.array(rows, dtype=np.float64), logits.device)
    ranked = any(0 < s.spec.top_k < logits.shape[1] or s.spec.top_p < 1.0 for s in samples)
    parts = zip(torch.split(logits, _AT_ONCE), torch.split(terms, _AT_ONCE), strict=True)
    return torch.cat([draw(part, wanted, ranked=ranked) for part, wanted in parts])


def _terms(sample: Sample, vocab: int) -> tuple[float, float, float, float, float]:
    """Temperature, top_k (the vocabulary if off), top_p, min_p, the uniform number."""
    spec = sample.spec
    position = len(sample.prompt_ids) + len(sample.generated_ids)
    number = uniform(spec.seed, position, sample.choice_index)
    return spec.temperature, spec.top_k or vocab, spec.top_p, spec.min_p, number


def draw(logits: Tensor, terms: Tensor, *, ranked: bool) -> Tensor:
    """Steps 4 to 8 of ``sampler``: one token id, int64 [n], for finite logits [n, vocab].

    ``terms`` float64 [n, 5] are temperature, top_k, top_p, min_p and the uniform number of each
    row; ``ranked`` says that some row has a top_k or top_p.
    """
    temperature, most, share, least, number = terms[:, :, None].unbind(1)
    scores = logits.double()
    weights = ((scores - scores.amax(-1, keepdim=True)) / temperature).exp_()
    if ranked:
        # By score: dividing may round two into a tie. Plus 0: -0.0 must tie with 0.0.
        order = (logits + 0.0).sort(dim=-1, descending=True, stable=True).indices
        rank = torch.arange(logits.shape[1], device=logits.device)
        ranks = weights.gather(1, order).masked_fill_(rank >= most, 0.0)
        mass = ranks.cumsum(-1)
        crossing = (mass < share * mass[:, -1:]).sum(-1, keepdim=True)
        ranks.masked_fill_((rank > crossing) & (share < 1.0), 0.0)
        weights = torch.zeros_like(weights).scatter_(1, order, ranks)
    weights.masked_fill_(weights < least, 0.0)
    cumulative = weights.cumsum(-1)
    present = weights > 0
    # A parallel sum need not grow at every step, so only what has a weight is looked at.
    above = (cumulative > number * cumulative[:, -1:]) & present
    first = above.byte().argmax(-1)
    last = present.shape[1] - 1 - present.flip(-1).byte().argmax(-1)
    return torch.where(above.any(-1), first, last)
