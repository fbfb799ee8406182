"""Log probabilities of a token and of the most likely, by the model's own distribution. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from baton.generation import TokenLogprobs
from model.sampling.sampler import top_k


def logprobs(logits: npt.NDArray[np.float32], token_id: int, count: int) -> TokenLogprobs:
    """Of ``token_id`` and of the ``count`` most likely ids, given finite ``logits`` [vocab] as the
    model made them. Summed in float64, in vocabulary order. O(vocab)."""
    scores = logits.astype(np.float64)
    largest = scores.max()
    total = largest + np.log(np.exp(scores - largest).sum())
    best = top_k(logits, min(count, len(logits))) if count else np.empty(0, dtype=np.int64)
    ranked = best[np.argsort(-scores[best], kind="stable")].tolist()  # of equals the lower id first
    return TokenLogprobs(
        float(scores[token_id] - total), tuple((i, float(scores[i] - total)) for i in ranked)
    )
