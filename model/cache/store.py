"""The KV pool in host memory as plain bytes: a ``BlockStore`` (model/engine/runner.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from baton.kv.transport import Region

Bytes: TypeAlias = npt.NDArray[np.uint8]


class HostStore:
    """Bytes of a pool in host memory, without a torch call: safe on an event loop."""

    def __init__(self, pool: npt.NDArray[np.float16]) -> None:
        """``pool`` is KvPool.host, [layers, blocks, ...], contiguous."""
        layers, blocks = pool.shape[:2]
        self._bytes: Bytes = pool.view(np.uint8).reshape(layers, blocks, -1)
        # Slices of a memoryview cost a fifth of what views of an array do.
        self._layers = [memoryview(layer.reshape(-1).data).toreadonly() for layer in self._bytes]

    @property
    def block_bytes(self) -> int:
        return int(self._bytes.shape[2])

    @property
    def region(self) -> Region:
        return Region(self._bytes.ctypes.data, *self._bytes.shape)

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        tell()

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        """Read-only views of the pool itself: valid until the blocks are released."""
        require_inside(self._bytes.shape[:2], layer, blocks)
        whole, length = self._layers[layer], self.block_bytes
        return [whole[start : start + length] for start in (block * length for block in blocks)]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        require_inside(self._bytes.shape[:2], layer, blocks)
        rows = as_rows(target, len(blocks), self.block_bytes)
        # "clip" alone copies straight to its target; the blocks are known to exist.
        np.take(self._bytes[layer], blocks, axis=0, out=rows, mode="clip")

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        require_inside(self._bytes.shape[:2], layer, blocks)
        self._bytes[layer, list(blocks)] = as_rows(data, len(blocks), self.block_bytes)

    def pin(self, memory: memoryview) -> AbstractContextManager[None]:
        """No device copies to or from it."""
        return nullcontext()


def require_inside(shape: Sequence[int], layer: int, blocks: Sequence[int]) -> None:
    """Raise ValueError unless layer and blocks exist; numpy would take -1 for the last one."""
    layers, count = shape
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} is outside 0 .. {layers - 1}")
    for block in blocks:
        if not 0 <= block < count:
            raise ValueError(f"block {block} is outside 0 .. {count - 1}")


def as_rows(data: memoryview, blocks: int, block_bytes: int) -> Bytes:
    """The data as uint8 [blocks, block_bytes], not copied. Raises ValueError on another length."""
    if data.nbytes != blocks * block_bytes:
        raise ValueError(
            f"{data.nbytes} bytes for {blocks} blocks of {block_bytes}, "
            f"which take {blocks * block_bytes}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(blocks, block_bytes)
