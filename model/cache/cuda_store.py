"""The KV pool of a CUDA device as plain bytes: a ``BlockStore`` (model/engine/runner.py).

Bytes move on a stream and a thread of their own, beside the engine's computing:

    engine thread, computing stream            store's thread, store's stream
    -------------------------------            ------------------------------
    begin_step(blocks that are handed over)
    layer 0 written; mark_written(0): event -> wait for that event, gather the blocks of a piece,
    layer 1 written; mark_written(1): event    copy them to host memory, wait until that is done
    ... the step ends synchronised
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import numpy as np
import structlog
import torch
from torch import Tensor

from baton.kv.transport import Region
from model.cache.pool import KvPool
from model.cache.store import Bytes, as_rows, require_inside

log = structlog.get_logger(__name__)
E = TypeVar("E")

#: Pinned memory for copies from and to memory that is not pinned itself: at least a block.
_STAGING_BYTES = 4 * 2**20
#: cuda_runtime_api.h: pinned for every device of the process; memory that is mapped read-only.
_PORTABLE, _READ_ONLY = 0x01, 0x08


class StepWrites(Generic[E]):
    """Which blocks the running step writes, and the event that comes after each layer of them.

    Written by the engine thread, read by the store's, without a lock: a reader uses either the
    step it saw or a later one. Of a later one it learns that its blocks are finished, as a step
    begins only when the one before has ended.
    """

    def __init__(self) -> None:
        self._step: tuple[frozenset[int], dict[int, E]] = (frozenset(), {})

    def begin(self, blocks: Iterable[int]) -> None:
        """A step begins that writes these blocks; the one before has ended."""
        self._step = (frozenset(blocks), {})

    @property
    def some(self) -> bool:
        """Whether the running step writes any."""
        return bool(self._step[0])

    def mark(self, layer: int, written: E) -> None:
        """The layer is written once ``written`` has come to pass."""
        self._step[1][layer] = written

    def last(self, layer: int) -> E | None:
        """What to wait for before anything of the layer is read; None: all is written."""
        return self._step[1].get(layer)

    def awaited(self, layer: int, blocks: Iterable[int]) -> E | None:
        """What to wait for before these blocks are read; None: they are written.

        Raises RuntimeError for blocks of a layer that is still to be computed.
        """
        writing, events = self._step
        if writing.isdisjoint(blocks):
            return None
        if layer not in events:
            raise RuntimeError(f"layer {layer} is read before it is computed")
        return events[layer]


class CudaStore:
    """Bytes of a pool in device memory.

    The computing stream is neither waited for nor made to wait. A read waits, on the store's
    stream, for the one event after which its layer is written, and for none where the running
    step does not write its blocks: the runner ends every step synchronised. (After a step that
    failed this need not be so; its sequences have ended with it, and their hand-offs are void.)
    A write is finished when it returns; no step reads its blocks before.

    Memory that is pinned (``pin``) is copied to and from directly, other memory by way of a
    pinned buffer. All copies take turns on one thread: one whose layer is being computed holds
    up those behind it for as long.
    """

    def __init__(self, pool: KvPool) -> None:
        layers, blocks = pool.tensor.shape[:2]
        self._device = pool.tensor.device
        self._bytes = pool.tensor.view(torch.uint8).view(layers, blocks, -1)
        self._shape = (layers, pool.num_blocks)  # a spare block is none that can be asked for
        self._writes = StepWrites[torch.cuda.Event]()
        self._pinned: dict[int, int] = {}  # start -> end, as addresses
        count = max(1, _STAGING_BYTES // self.block_bytes)
        with torch.cuda.device(self._device):
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # Whoever waits for it sleeps, and keeps no core busy.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            shape = (count, self.block_bytes)
            self._staging = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            self._index = torch.empty(count, dtype=torch.int64, pin_memory=True)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-copy")

    @property
    def block_bytes(self) -> int:
        return int(self._bytes.shape[2])

    # -- the engine thread -----------------------------------------------------------------

    def begin_step(self, blocks: Iterable[int]) -> None:
        """A step begins, of which these blocks will be handed over. All before is finished."""
        self._writes.begin(blocks)

    def mark_written(self, layer: int) -> None:
        """The writes of a layer are on the current stream."""
        if self._writes.some:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._writes.mark(layer, event)

    # -- BlockStore ------------------------------------------------------------------------

    @property
    def region(self) -> Region:
        layers, blocks, nbytes = self._bytes.shape
        return Region(self._bytes.data_ptr(), layers, blocks, nbytes, self._device.index or 0)

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        event = self._writes.last(layer)
        if event is None:
            tell()
            return
        loop = asyncio.get_running_loop()
        written = loop.run_in_executor(self._thread, event.synchronize)
        written.add_done_callback(lambda _: tell())

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        """Views of a copy, which they keep alive."""
        require_inside(self._shape, layer, blocks)
        rows = np.empty((len(blocks), self.block_bytes), dtype=np.uint8)
        await self._run(self._copy_out, layer, list(blocks), rows)
        whole, size = rows.data.cast("B").toreadonly(), self.block_bytes
        return [whole[start : start + size] for start in range(0, whole.nbytes, size)]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        require_inside(self._shape, layer, blocks)
        rows = as_rows(target, len(blocks), self.block_bytes)
        await self._run(self._copy_out, layer, list(blocks), rows)

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        require_inside(self._shape, layer, blocks)
        rows = as_rows(data, len(blocks), self.block_bytes)
        await self._run(self._copy_in, layer, list(blocks), rows)

    @contextmanager
    def pin(self, memory: memoryview) -> Iterator[None]:
        """See ``BlockStore``. Where the device refuses, the log says so (a cudaError)."""
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address, nbytes = np.frombuffer(memory, dtype=np.uint8).ctypes.data, memory.nbytes
        flags = _PORTABLE | (_READ_ONLY if memory.readonly else 0)
        with torch.cuda.device(self._device):
            error = int(cudart.cudaHostRegister(address, nbytes, flags))
        if error:
            log.warning("memory not pinned", bytes=nbytes, readonly=memory.readonly, error=error)
            self._forget_error()
            yield
            return
        self._pinned[address] = address + nbytes
        try:
            yield
        finally:
            del self._pinned[address]
            # In turn: copies that began while it was pinned end first.
            self._thread.submit(self._unpin, address, memory)

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    # -- the store's thread ----------------------------------------------------------------

    async def _run(
        self,
        copy: Callable[[int, list[int], Bytes], None],
        layer: int,
        blocks: list[int],
        rows: Bytes,
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, copy, layer, blocks, rows)

    def _copy_out(self, layer: int, blocks: list[int], rows: Bytes) -> None:
        """Copy blocks to ``rows``, uint8 [blocks, block_bytes]."""
        written = self._writes.awaited(layer, blocks)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if written is not None:
                self._stream.wait_event(written)
            for some, part in self._rounds(blocks, rows):
                gathered = self._bytes[layer].index_select(0, self._indices(some))
                direct = self._pinned_tensor(part)
                host = self._staging[: len(some)] if direct is None else direct
                host.copy_(gathered, non_blocking=True)
                self._finish()
                if direct is None:
                    np.copyto(part, host.numpy())

    def _copy_in(self, layer: int, blocks: list[int], rows: Bytes) -> None:
        """Copy ``rows``, uint8 [blocks, block_bytes], to blocks."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for some, part in self._rounds(blocks, rows):
                host = self._pinned_tensor(part)
                if host is None:
                    host = self._staging[: len(some)]
                    np.copyto(host.numpy(), part)
                moved = host.to(self._device, non_blocking=True)
                self._bytes[layer].index_copy_(0, self._indices(some), moved)
                self._finish()

    def _rounds(self, blocks: list[int], rows: Bytes) -> Iterator[tuple[list[int], Bytes]]:
        """As much at a time as fits the staging buffer. Each round ends with ``_finish``."""
        count = len(self._staging)
        for first in range(0, len(blocks), count):
            yield blocks[first : first + count], rows[first : first + count]

    def _indices(self, blocks: list[int]) -> Tensor:
        """Block ids as int64 on the device. From pinned memory, so that nothing has to wait."""
        index = self._index[: len(blocks)]
        index.copy_(torch.tensor(blocks))
        return index.to(self._device, non_blocking=True)

    def _finish(self) -> None:
        """Wait until the store's stream is through with what it was given."""
        self._done.record(self._stream)
        self._done.synchronize()

    def _pinned_tensor(self, rows: Bytes) -> Tensor | None:
        """A tensor over ``rows`` if they are in pinned memory."""
        start = rows.ctypes.data
        end = start + rows.nbytes
        if not any(first <= start and end <= last for first, last in list(self._pinned.items())):
            return None
        # By address: torch warns of memory that cannot be written, but this is then only read.
        memory = (ctypes.c_uint8 * rows.nbytes).from_address(start)
        return torch.frombuffer(memory, dtype=torch.uint8).view(rows.shape)

    def _unpin(self, address: int, memory: memoryview) -> None:
        """Holds ``memory``, so that what is pinned is not unmapped before."""
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            error = int(cudart.cudaHostUnregister(address))
        del memory
        if error:
            log.error("memory not unpinned", error=error)
            self._forget_error()

    def _forget_error(self) -> None:
        """CUDA keeps the last error of a thread, and torch would raise it for the next kernel."""
        with suppress(RuntimeError), torch.cuda.stream(self._stream):
            torch.zeros(1, device=self._device)
