"""A plan's slices packed one after another, as the net reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.cache.pool import KvPool
from model.engine.plan import Slice
from model.nets.attention import Span

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """Tensors on the device."""

    token_ids: Tensor  #: int64 [n]
    positions: Tensor  #: int64 [n]
    rows: Tensor  #: int64 [2 * n], where K and V go in the pool
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """A block table as it was last read."""

    source: Sequence[int]
    blocks: list[int]
    ids: Ints
    on_device: Tensor

    def holds(self, piece: Slice, block_size: int) -> bool:
        """Whether it still is that of ``piece``. A sequence's table grows, and the blocks that it
        writes to may be replaced; those before them are full and stay."""
        written = piece.start // block_size
        return self.source is piece.block_table and self.blocks[written:] == self.source[written:]


class Packer:
    """Keeps the tables of the last step: a decoding sequence's changes once in a block."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._tables: dict[int, _Table] = {}

    def pack(self, slices: Sequence[Slice]) -> PackedStep:
        """All of at least one slice."""
        size, device = self._pool.block_size, self._pool.tensor.device
        self._tables = {piece.seq_id: self._table(piece) for piece in slices}
        tables = [self._tables[piece.seq_id] for piece in slices]
        counts = [len(piece.token_ids) for piece in slices]
        starts = [piece.start for piece in slices]
        firsts = _before(counts)
        token_ids = np.fromiter(
            chain.from_iterable(piece.token_ids for piece in slices), np.int64, sum(counts)
        )
        positions = np.arange(len(token_ids)) + np.repeat(np.subtract(starts, firsts), counts)
        places = np.repeat(_before([len(table.ids) for table in tables]), counts)
        blocks = np.concatenate([table.ids for table in tables])[places + positions // size]
        rows = self._pool.rows_of(blocks, positions % size)
        on_device = [torch.from_numpy(x).to(device) for x in (token_ids, positions, rows)]
        spans = tuple(
            Span(first, count, start, table.on_device)
            for first, count, start, table in zip(
                firsts.tolist(), counts, starts, tables, strict=True
            )
        )
        return PackedStep(on_device[0], on_device[1], on_device[2], spans)

    def _table(self, piece: Slice) -> _Table:
        known = self._tables.get(piece.seq_id)
        if known is not None and known.holds(piece, self._pool.block_size):
            return known
        blocks = list(piece.block_table)
        ids = np.array(blocks, dtype=np.int64)
        on_device = torch.from_numpy(ids).to(self._pool.tensor.device)
        return _Table(piece.block_table, blocks, ids, on_device)


def _before(counts: Sequence[int]) -> Ints:
    """The sum of all counts before each."""
    return np.cumsum([0, *counts[:-1]], dtype=np.int64)
