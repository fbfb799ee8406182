"""The paged KV cache as one FP16 tensor.

Layout [layers, blocks, 2 (K, V), block_size, kv_heads, head_dim]: one block of one layer is
contiguous, so that a hand-off moves it as plain bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Beyond this, half a step above the largest FP16 (65,504), a value rounds to infinity.
FP16_LIMIT = 65520.0
_LINE = 64  # bytes of a CPU's cache line


class KvPool:
    """Memory only: which block belongs to whom is the allocator's business."""

    def __init__(
        self,
        *,
        layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        """``spare`` blocks follow the others; they are nobody's, and steps may write there.

        Raises ValueError for more than there is memory for.
        """
        self.block_size = block_size
        self.num_blocks = num_blocks
        shape = (layers, num_blocks + spare, 2, block_size, kv_heads, head_dim)
        #: On a CPU the same memory as a numpy array, so that bytes move without torch.
        self.host: npt.NDArray[np.float16] | None = None
        try:
            if device.type == "cpu":
                self.host = _zeros(shape)
                self.tensor = torch.from_numpy(self.host)
            else:
                self.tensor = torch.zeros(shape, dtype=torch.float16, device=device)
        except (MemoryError, torch.OutOfMemoryError):
            gib = 2 * math.prod(shape) / 2**30
            raise ValueError(
                f"no memory on {device} for {num_blocks} KV blocks, {gib:.4g} GiB: give fewer by "
                "--kv-memory-gib or --num-blocks"
            ) from None

    def rows_of(
        self, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Where n tokens go, by block and place in it: [2 * n] for ``write``, all K before all V.

        A row is one token's K or V; a block is ``block_size`` rows of K, then as many of V.
        """
        keys = blocks * (2 * self.block_size) + offsets
        return np.concatenate((keys, keys + self.block_size))

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Round k and v [n, kv_heads, head_dim] to FP16 and store them.

        Returns the largest magnitude among each token's K and V before rounding, float32 [n]:
        at FP16_LIMIT or above, or NaN, the token's KV is not to be used.
        """
        both = torch.stack((k, v))
        flat = self.tensor[layer].view(-1, *k.shape[1:])
        flat.index_copy_(0, rows, both.flatten(0, 1).to(torch.float16))
        return both.abs().amax(dim=(0, 2, 3)).float()

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks, in every layer. No target is a source or named twice."""
        ids = torch.tensor((sources, targets), device=self.tensor.device)
        self.tensor.index_copy_(1, ids[1], self.tensor.index_select(1, ids[0]))

    def layer(self, index: int) -> Tensor:
        """One layer as it is, no copy: [blocks, 2 (K, V), block_size, kv_heads, head_dim]."""
        return self.tensor[index]

    def read(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of the blocks in ``table``, int64 [m].

        Each is FP16 [m * block_size, kv_heads, head_dim], a copy.
        """
        blocks = self.tensor[layer].index_select(0, table)
        return blocks[:, 0].flatten(0, 1), blocks[:, 1].flatten(0, 1)


def _zeros(shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
    """FP16 zeros that begin with a cache line: numpy's own begin 16 bytes into one, and then
    every head's row takes one line more. Written, not only reserved: a page fault for each page
    would come in the middle of steps and hand-offs. Raises MemoryError: before the kernel ends us,
    where it is more than the machine has."""
    size = 2 * math.prod(shape)
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise MemoryError
    memory = np.empty(size + _LINE, dtype=np.uint8)
    memory.fill(0)
    first = -memory.ctypes.data % _LINE
    return memory[first : first + size].view(np.float16).reshape(shape)
