"""Which sequences of a step have keys or values that FP16 cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError, KvOverflow
from model.cache.pool import FP16_LIMIT
from model.engine.plan import Slice


def overflows(slices: Sequence[Slice], peaks: npt.NDArray[np.float32]) -> dict[int, BatonError]:
    """A KvOverflow for every slice with a K or V beyond FP16.

    ``peaks`` [layers, n] is the largest magnitude among each token's K and V, the slices' tokens
    one after another.
    """
    beyond = ~(peaks < FP16_LIMIT)  # this way round NaN is beyond, too
    if not beyond.any():
        return {}
    errors: dict[int, BatonError] = {}
    first = 0
    for piece in slices:
        found = np.argwhere(beyond[:, first : first + len(piece.token_ids)])
        if len(found):
            layer, offset = found[0].tolist()
            errors[piece.seq_id] = KvOverflow(
                f"a key or value of magnitude {float(peaks[layer, first + offset]):g} in "
                f"layer {layer} at position {piece.start + offset} does not fit the FP16 cache, "
                f"whose largest is 65504"
            )
        first += len(piece.token_ids)
    return errors
