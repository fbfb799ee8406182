"""CRC-32C of KV blocks: computed where they leave, compared where they arrive.

The reader alone decides, for each prefill instance, whether blocks come with their checksums
(``Policy``); it asks in TransportOffer, and TransportChoice must say the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crc32c import crc32c

from baton.errors import HandoffFailed
from baton.kv.framing import Piece
from baton.settings import KvChecksums

#: Of one checksum, wherever it lies.
SUM_BYTES = 4
#: What checksums may cost for ``auto`` to have them: a share of the hand-off's time.
AUTO_SHARE = 0.02
_SIDES = 2  # each block is summed where it leaves and where it arrives

# One block is a few microseconds: less than it takes to get the interpreter's lock back.
_KEEP_LOCK = 0

_MEASURED_BYTES, _ROUNDS = 2**20, 9


def of_blocks(blocks: Iterable[memoryview]) -> list[int]:
    """The checksum of each block."""
    return [crc32c(block, 0, _KEEP_LOCK) for block in blocks]


def of_payload(payload: memoryview, block_bytes: int) -> list[int]:
    """The checksum of each block of ``payload``, which is whole blocks one after another."""
    # No view of a block outlives its turn: shared memory could not be closed before it.
    return [
        crc32c(payload[at : at + block_bytes], 0, _KEEP_LOCK)
        for at in range(0, payload.nbytes, block_bytes)
    ]


def verify(piece: Piece, block_size: int, came: Sequence[int], computed: Sequence[int]) -> None:
    """Compare the checksums that came with a piece with those of the blocks that came.

    ``block_size`` is in tokens. Raises HandoffFailed, naming layer, tokens and both values,
    unless there is one for each block, and the right one.
    """
    layer, start, end = piece
    if len(came) != len(computed):
        raise HandoffFailed(
            f"KV of layer {layer}, tokens {start} to {end}, came with {len(came)} checksums "
            f"for {len(computed)} blocks"
        )
    for sent, found in zip(came, computed, strict=True):
        if sent != found:
            last = min(start + block_size, end)
            raise HandoffFailed(
                f"KV of layer {layer}, tokens {start} to {last}, is damaged: "
                f"its CRC-32C is {found:#010x}, {sent:#010x} was sent"
            )
        start += block_size


def measure_rate(block_bytes: int) -> float:
    """Bytes per second that this process sums in blocks of so many bytes.

    Takes some milliseconds of computing, so not on the event loop.
    """
    payload = memoryview(bytes(max(1, _MEASURED_BYTES // block_bytes) * block_bytes))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        of_payload(payload, block_bytes)
        seconds.append(time.perf_counter() - began)
    return payload.nbytes / statistics.median(seconds)


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether a reader asks for checksums (``--kv-checksums``)."""

    mode: KvChecksums
    rate: float  #: bytes per second, see ``measure_rate``; matters to ``auto`` alone

    @property
    def auto_limit(self) -> float:
        """Bytes per second below which ``auto`` wants them.

        Reckoned as if the summing on neither side overlapped with anything, and the prefill side
        were as fast at it as this one.
        """
        return AUTO_SHARE * self.rate / _SIDES

    def wanted(self, bytes_per_s: float) -> bool:
        """For a pair whose hand-offs were so fast; 0 where none was measured yet."""
        if self.mode != "auto":
            return self.mode == "on"
        return 0 < bytes_per_s < self.auto_limit
