"""Which tokens may come next at all, where a grammar holds the answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from baton.errors import InternalError
from model.engine.plan import Sample

Ids = npt.NDArray[np.int64]


def allowed_ids(sample: Sample, vocab: int) -> Ids | None:
    """Ids below ``vocab`` that may come next, ascending; None where any may.

    Ends of sequence are not among them before min_tokens are generated, unless the grammar leaves
    nothing else. Raises what ``Constraint.allowed`` raises, and InternalError when no id is left.
    """
    if sample.constraint is None:
        return None
    mask = np.frombuffer(sample.constraint.allowed(sample.generated_ids), dtype=np.uint8)
    ids = np.flatnonzero(np.unpackbits(mask, count=vocab, bitorder="little").view(np.bool_))
    if not len(ids):
        raise InternalError("the grammar leaves no token")
    if len(sample.generated_ids) < sample.spec.min_tokens:
        going_on = ids[~np.isin(ids, sample.spec.eos_ids)]
        return going_on if len(going_on) else ids
    return ids
