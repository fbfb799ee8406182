"""The KV pool as plain bytes: the two stores behind ``BlockStore`` (model/engine/runner.py).

``HostStore`` hands out the pool's own memory. ``CudaStore`` copies through pinned memory on a
thread and a stream of its own, beside the engine's computing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from baton.kv.transport import Region
from model.cache.pool import KvPool

_Bytes = npt.NDArray[np.uint8]


class HostStore:
    """Bytes of a pool in host memory, without a torch call: safe on an event loop."""

    def __init__(self, pool: npt.NDArray[np.float16]) -> None:
        """``pool`` is KvPool.host, [layers, blocks, ...], contiguous."""
        layers, blocks = pool.shape[:2]
        self._bytes: _Bytes = pool.view(np.uint8).reshape(layers, blocks, -1)

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
        _require_inside(self._bytes.shape[:2], layer, blocks)
        views = self._bytes[layer]
        return [memoryview(views[block]).toreadonly() for block in blocks]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        _require_inside(self._bytes.shape[:2], layer, blocks)
        rows = _as_rows(target, len(blocks), self.block_bytes)
        # "clip" alone copies straight to its target; the blocks are known to exist.
        np.take(self._bytes[layer], blocks, axis=0, out=rows, mode="clip")

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        _require_inside(self._bytes.shape[:2], layer, blocks)
        self._bytes[layer, list(blocks)] = _as_rows(data, len(blocks), self.block_bytes)


class CudaStore:
    """Bytes of a pool in device memory.

    A read waits, on the store's stream, for the event of the layer's last write, and so overlaps
    with the computing of later layers. A write is finished when it returns; the runner ends every
    step synchronised, so no step is reading the blocks (they have just been allocated).
    """

    def __init__(self, pool: KvPool) -> None:
        layers, blocks = pool.tensor.shape[:2]
        self._bytes = pool.tensor.view(torch.uint8).view(layers, blocks, -1)
        self._stream = torch.cuda.Stream(device=pool.tensor.device)  # type: ignore[no-untyped-call]
        self._written = [
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(layers)
        ]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-copy")

    @property
    def block_bytes(self) -> int:
        return int(self._bytes.shape[2])

    @property
    def region(self) -> Region:
        layers, blocks, nbytes = self._bytes.shape
        return Region(self._bytes.data_ptr(), layers, blocks, nbytes, self._bytes.device.index or 0)

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        event, loop = self._written[layer], asyncio.get_running_loop()
        written = loop.run_in_executor(self._thread, event.synchronize)
        written.add_done_callback(lambda _: tell())

    def mark_written(self, layer: int) -> None:
        """Called on the engine thread, after a layer's writes are on its current stream."""
        self._written[layer].record(torch.cuda.current_stream(self._bytes.device))

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        """Views of pinned memory that the returned views keep alive."""
        _require_inside(self._bytes.shape[:2], layer, blocks)
        loop = asyncio.get_running_loop()
        copied = await loop.run_in_executor(self._thread, self._copy_out, layer, list(blocks))
        return [memoryview(block).toreadonly() for block in copied]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        _require_inside(self._bytes.shape[:2], layer, blocks)
        rows, wanted = _as_rows(target, len(blocks), self.block_bytes), list(blocks)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            self._thread, lambda: np.copyto(rows, self._copy_out(layer, wanted))
        )

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        _require_inside(self._bytes.shape[:2], layer, blocks)
        rows = _as_rows(data, len(blocks), self.block_bytes)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._copy_in, layer, list(blocks), rows)

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _copy_out(self, layer: int, blocks: list[int]) -> _Bytes:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._written[layer])
            index = torch.tensor(blocks).to(self._bytes.device, non_blocking=True)
            gathered = self._bytes[layer].index_select(0, index)
            pinned = torch.empty(gathered.shape, dtype=torch.uint8, pin_memory=True)
            pinned.copy_(gathered, non_blocking=True)
            self._stream.synchronize()
        return pinned.numpy()

    def _copy_in(self, layer: int, blocks: list[int], rows: _Bytes) -> None:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            pinned = torch.empty(rows.shape, dtype=torch.uint8, pin_memory=True)
            np.copyto(pinned.numpy(), rows)
            index = torch.tensor(blocks).to(self._bytes.device, non_blocking=True)
            moved = pinned.to(self._bytes.device, non_blocking=True)
            self._bytes[layer].index_copy_(0, index, moved)
            self._stream.synchronize()


def _require_inside(shape: Sequence[int], layer: int, blocks: Sequence[int]) -> None:
    """Raise ValueError unless layer and blocks exist; numpy would take -1 for the last one."""
    layers, count = shape
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} is outside 0 .. {layers - 1}")
    for block in blocks:
        if not 0 <= block < count:
            raise ValueError(f"block {block} is outside 0 .. {count - 1}")


def _as_rows(data: memoryview, blocks: int, block_bytes: int) -> _Bytes:
    """The data as uint8 [blocks, block_bytes], not copied. Raises ValueError on another length."""
    if data.nbytes != blocks * block_bytes:
        raise ValueError(
            f"{data.nbytes} bytes for {blocks} blocks of {block_bytes}, "
            f"which take {blocks * block_bytes}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(blocks, block_bytes)
