"""One transfer to be measured, as both processes know it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from baton.channels import KV_FRAME_BYTES
from baton.kv.framing import Shape
from model.cache.store import HostStore

LAYERS, BLOCK_SIZE = 32, 16
MIB, KIB = 2**20, 2**10

#: Bytes that exist from the start and were touched, so that using them grows nothing.
Memory: TypeAlias = npt.NDArray[np.uint8]

#: What the sender tells the receiver, addresses and tokens by name.
Where: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """A hand-off of ``mib`` MiB of KV, or as many bytes moved in a simpler way."""

    path: str  #: the way the bytes take, a name in ``bench.paths``
    mib: int
    token_kib: int  #: KV of one token in all layers, KiB
    run: int  #: counts up: each hand-off goes to other blocks than the last
    slow_mb_s: int = 0  #: the receiver takes no more than so many MB (10^6 bytes) a second; 0: all
    patience_s: float = 0.0  #: and gives up after so long; 0: never

    def __post_init__(self) -> None:
        """Raises ValueError for a size that is no whole number of blocks."""
        if min(self.token_kib, self.mib) < 1 or self.nbytes % (self.token_kib * KIB * BLOCK_SIZE):
            raise ValueError(
                f"{self.mib} MiB are no whole number of blocks of {BLOCK_SIZE} tokens, "
                f"{self.token_kib} KiB each"
            )

    @property
    def nbytes(self) -> int:
        return self.mib * MIB

    @property
    def shape(self) -> Shape:
        token_bytes = self.token_kib * KIB
        block_bytes = token_bytes * BLOCK_SIZE // LAYERS
        return Shape(LAYERS, BLOCK_SIZE, block_bytes, 0, self.nbytes // token_bytes)

    @property
    def message_bytes(self) -> int:
        """Payload of one message of the grpc transport: whole blocks."""
        block_bytes = self.shape.block_bytes
        return max(1, KV_FRAME_BYTES // block_bytes) * block_bytes

    def store(self, memory: Memory) -> HostStore:
        """``memory`` as a pool that holds this hand-off and nothing else."""
        shape = self.shape
        pool = memory[: self.nbytes].view(np.float16)
        return HostStore(pool.reshape(shape.layers, shape.end // BLOCK_SIZE, -1))

    def table(self, side: int) -> list[int]:
        """A block table as scattered as those of a busy pool; another one for each side."""
        blocks = self.shape.end // BLOCK_SIZE
        order: list[int] = np.random.default_rng((self.run, side)).permutation(blocks).tolist()
        return order


class Sender(Protocol):
    """The sending end of one path, for jobs of one shape, one at a time."""

    def offer(self, job: Job) -> AbstractAsyncContextManager[Where]:
        """The bytes can be had while the body runs."""
        ...


class Receiver(Protocol):
    """The receiving end of one path, for jobs of one shape, one at a time."""

    async def read(self, job: Job, where: Where) -> None:
        """Returns when the last byte is in place."""
        ...


#: Opens an end for jobs that are shaped like this one.
OpenSender: TypeAlias = Callable[[Job, Memory], AbstractAsyncContextManager[Sender]]
OpenReceiver: TypeAlias = Callable[[Job, Memory], AbstractAsyncContextManager[Receiver]]
