"""Adjustments of single logits, before any token is ranked. Pure functions of a float64 copy.

All of them look only at the prompt and the generated ids, so a replayed attempt adjusts alike.
Ids beyond the vocabulary are ignored, but for a ``logit_bias``, which asks for them by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from baton.errors import InternalError, InvalidRequest
from baton.sampling import SamplingSpec
from model.engine.plan import Sample

Logits = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

#: Far above any logit, and differences of such numbers are still finite.
_HUGE = 1e100


def changes_logits(sample: Sample) -> bool:
    """Whether ``adjusted`` would return anything but the logits as they are."""
    spec = sample.spec
    return bool(
        spec.repetition_penalty != 1.0
        or ((spec.presence_penalty or spec.frequency_penalty) and sample.generated_ids)
        or spec.logit_bias
        or _eos_masked(sample)
    )


def adjusted(logits: npt.NDArray[np.floating], sample: Sample) -> Logits:
    """Penalties, then logit_bias, then the min_tokens mask, on a float64 copy of ``logits``
    [vocab]. Raises InvalidRequest for a bias on an id outside the vocabulary, InternalError when
    the mask leaves no token."""
    out = logits.astype(np.float64)
    spec, vocab = sample.spec, len(out)
    if spec.repetition_penalty != 1.0:
        _penalise_repetition(out, sample)
    if (spec.presence_penalty or spec.frequency_penalty) and sample.generated_ids:
        ids, counts = np.unique(_known(sample.generated_ids, vocab), return_counts=True)
        out[ids] -= spec.presence_penalty + spec.frequency_penalty * counts
    for token, bias in spec.logit_bias.items():
        if not 0 <= token < vocab:
            raise InvalidRequest(
                f"logit_bias names token {token}, but the vocabulary has {vocab}",
                param="logit_bias",
            )
        out[token] += bias
    if _eos_masked(sample):
        out[_known(spec.eos_ids, vocab)] = -np.inf
        if out.max() == -np.inf:
            raise InternalError("every token is masked")
    return out


def _penalise_repetition(out: Logits, sample: Sample) -> None:
    """Divide positive and multiply negative logits of every id in prompt or output, once
    (Keskar et al., CTRL, as Hugging Face and vLLM apply it)."""
    seen = np.zeros(len(out), dtype=bool)
    seen[_known(sample.prompt_ids, len(out))] = True
    seen[_known(sample.generated_ids, len(out))] = True
    penalty = sample.spec.repetition_penalty
    chosen = out[seen]
    with np.errstate(over="ignore"):  # a penalty near 0: huge, but kept finite
        scaled = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    out[seen] = np.clip(scaled, -_HUGE, _HUGE)


def _eos_masked(sample: Sample) -> bool:
    """Where a grammar holds the answer, ``allowed_ids`` sees to it."""
    spec: SamplingSpec = sample.spec
    short = bool(spec.eos_ids) and len(sample.generated_ids) < spec.min_tokens
    return short and sample.constraint is None


def _known(token_ids: Sequence[int], vocab: int) -> Ids:
    ids = np.fromiter(token_ids, dtype=np.int64, count=len(token_ids))
    return ids[(ids >= 0) & (ids < vocab)]
