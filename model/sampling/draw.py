"""The one random number of a token: counter-based, so it needs no state and no order.

A generator with state would have to be replayed to the right point after a preemption or a
fail-over, and could not be split over workers. Here the number is a hash of where it is used
(the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", with blake2b for the
mixing function: one call per token, 1 microsecond, the same on every machine).
"""

from __future__ import annotations

import struct
from hashlib import blake2b


def uniform(seed: int, position: int, choice_index: int) -> float:
    """A float64 uniform in [0, 1): the top 53 bits of blake2b-64 of the three numbers, each as
    a little-endian unsigned 64-bit integer. Pure.

    ``position`` is the one the token will take, counted from the start of the prompt, so that
    attempts which move tokens from "to generate" to "generated" draw the same numbers.
    """
    counter = struct.pack("<3Q", seed, position, choice_index)
    digest = blake2b(counter, digest_size=8, person=b"baton-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
