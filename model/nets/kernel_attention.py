"""Attention by our C kernel: on a CPU, straight from the paged pool, nothing gathered.

A query's result is bitwise a function of query, position and cache (see the source), so it serves
under ``--deterministic`` as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.kernels.library import PagedAttentionLibrary, Shape
from model.nets.attention import LayerCache, Span
from model.nets.config import ModelConfig

Ints = npt.NDArray[np.int64]

#: Multiplications from which on all threads take part, below it one: see kernel_linear.py.
_SHARED = 1 << 20
#: Sequences for each thread from which on one of few queries is not cut by KV heads: fewer would
#: not spread evenly.
_SPREAD = 4


@dataclass(frozen=True, slots=True)
class _Laid:
    """The spans of one step as the kernel reads them."""

    spans: Sequence[Span]
    rows: Ints  #: [len(spans) + 1, 6], ``struct span`` each
    tables: Ints  #: all block ids, one table after another
    threads: int
    addresses: tuple[int, int]  #: of rows and tables


class KernelAttention:
    """Computes in float32, or on bfloat16 q in pairs of bfloat16 where the CPU can.

    Not for two threads at once: it keeps scratch memory, and how the last spans were laid out.
    """

    def __init__(
        self,
        library: PagedAttentionLibrary,
        config: ModelConfig,
        *,
        block_size: int,
        dtype: torch.dtype,
        threads: int,
    ) -> None:
        self._library = library
        bf16 = dtype == torch.bfloat16
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._shape = Shape(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            bf16=bf16,
            pairs=bf16 and library.has_pairs,
        )
        self._at = byref(self._shape)
        self._at_once = library.queries_at_once(self._shape)
        self._threads = threads
        size = threads * library.scratch_bytes(self._shape)
        self._scratch = torch.empty(size, dtype=torch.uint8)  # torch aligns to 64 bytes
        self._laid: _Laid | None = None
        self._out = torch.empty(0, config.heads * config.head_dim, dtype=self._dtype)

    def __call__(
        self, layer: int, q: Tensor, cache: LayerCache, spans: Sequence[Span], window: int | None
    ) -> Tensor:
        """See ``Attention``; a result is good until the next call. Raises ValueError for a q of
        another shape, IndexError for a block that the pool does not have or a table that does not
        reach ``end``."""
        shape, pool = self._shape, cache.layer(layer)
        if q.shape[1:] != (shape.heads, shape.head_dim):
            raise ValueError(f"q {list(q.shape)} is not [n, {shape.heads}, {shape.head_dim}]")
        if self._laid is None or self._laid.spans is not spans:  # they come for every layer
            self._laid = self._lay_out(spans, pool.shape[0])
            self._out = self._out.new_empty(q.shape[0], self._out.shape[1])
        laid, given = self._laid, q.to(self._dtype).contiguous()
        rows, tables = laid.addresses
        self._library.attend(
            self._at,
            given.data_ptr(),
            self._out.data_ptr(),
            pool.data_ptr(),
            rows,
            len(spans),
            tables,
            window or 0,
            laid.threads,
            self._scratch.data_ptr(),
        )
        return self._out.to(q.dtype)

    def _lay_out(self, spans: Sequence[Span], num_blocks: int) -> _Laid:
        first, count, start, blocks = np.array(
            [(span.first, span.count, span.start, len(span.table)) for span in spans],
            dtype=np.int64,
        ).T
        end = start + count
        if (blocks * self._shape.block_size < end).any():
            worst = int((blocks * self._shape.block_size - end).argmin())
            raise IndexError(f"{blocks[worst]} blocks do not hold {end[worst]} positions")
        tables = np.concatenate([span.table.numpy() for span in spans])
        if len(tables) and (tables.min() < 0 or tables.max() >= num_blocks):
            raise IndexError(f"a block is outside 0 .. {num_blocks - 1}: {tables.tolist()}")
        work = int((count * end).sum()) * 2 * self._shape.heads * self._shape.head_dim
        threads = self._threads if work >= _SHARED else 1
        heads = np.ones_like(count)
        if threads == 1 or len(spans) >= _SPREAD * threads:
            heads[count * self._shape.kv_heads <= self._at_once] = self._shape.kv_heads
        items = -(-count // self._at_once) * (self._shape.kv_heads // heads)
        rows = np.zeros((len(spans) + 1, 6), dtype=np.int64)
        rows[:-1, :4] = np.stack((first, count, start, heads), axis=1)
        rows[1:, 4:] = np.stack((blocks.cumsum(), items.cumsum()), axis=1)
        return _Laid(spans, rows, tables, threads, (rows.ctypes.data, tables.ctypes.data))
