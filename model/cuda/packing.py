"""A plan's slices as one array of int32, so that one copy takes a step to the device. Pure.

The parts lie one behind another, each on a border of 16 bytes, the longest last:

    token_ids, positions, keys      one entry per token
    query_starts, ends, page_starts, last, picked     one entry (or one more) per sequence
    blocks                          all block tables, one after another
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from model.engine.plan import Slice

Ints = npt.NDArray[np.int32]
_BORDER = 4  # integers: kernels load 16 bytes at once where they know that they may


@dataclass(frozen=True, slots=True)
class Layout:
    """How long the parts of one step are, in integers, and where they lie."""

    tokens: int
    sequences: int
    blocks: int

    def parts(self) -> dict[str, slice]:
        """Name -> place; ``Inputs`` has a field for each."""
        each, more = self.sequences, self.sequences + 1
        lengths = {
            "token_ids": self.tokens,
            "positions": self.tokens,
            "keys": self.tokens,
            "query_starts": more,
            "ends": each,
            "page_starts": more,
            "last": each,
            "picked": each,
            "blocks": self.blocks,
        }
        parts, first = {}, 0
        for name, length in lengths.items():
            parts[name] = slice(first, first + length)
            first += -(-length // _BORDER) * _BORDER
        return parts

    @property
    def size(self) -> int:
        return int(self.parts()["blocks"].stop)


class Tables:
    """Block tables as arrays, kept from step to step: most only grow, by a block now and then.

    Turning 64 tables of 128 blocks into arrays anew takes half a millisecond.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._kept: dict[int, tuple[Sequence[int], Ints]] = {}

    def of(self, slices: Sequence[Slice]) -> list[Ints]:
        """One int32 array per slice; forgets the sequences that are not among them."""
        kept = {piece.seq_id: self._table(piece) for piece in slices}
        self._kept = kept
        return [kept[piece.seq_id][1] for piece in slices]

    def _table(self, piece: Slice) -> tuple[Sequence[int], Ints]:
        """The list it was made of, and the array. A list grows; those of its blocks that the step
        writes to may have been replaced; those before are full and stay."""
        table, full = piece.block_table, piece.start // self._block_size
        source, known = self._kept.get(piece.seq_id, (None, None))
        if known is None or source is not table or full > len(known):
            return table, np.array(table, dtype=np.int32)
        rest = table[full:]
        if known[full:].tolist() == rest:
            return table, known
        return table, np.concatenate((known[:full], np.array(rest, dtype=np.int32)))


@dataclass(frozen=True, slots=True)
class Packed:
    """One step, computed; ``write`` puts it where it is wanted."""

    layout: Layout
    values: dict[str, npt.NDArray[np.integer]]  #: by the names of ``Layout.parts``
    longest: int  #: most tokens of one sequence
    sampled: tuple[int, ...]  #: which slices ask for a token, in order

    def write(self, target: Ints) -> None:
        """Fill the first ``layout.size`` entries."""
        for name, place in self.layout.parts().items():
            target[place] = self.values[name]


def pack(
    slices: Sequence[Slice],
    tables: Sequence[Ints],
    block_size: int,
    *,
    rows: int | None = None,
    scratch: int = 0,
) -> Packed:
    """Pack slices, none empty, with their ``tables``.

    With ``rows`` (then every slice is of one token) sequences of one token at position 0 of block
    ``scratch`` follow until there are so many. The parts, int32:

    ``keys`` [tokens]: each token's row of K in a layer seen as rows of [kv_heads, head_dim]; its V
    lies ``block_size`` rows behind. ``query_starts``, ``page_starts`` [sequences + 1]: where each
    sequence begins among tokens and blocks. ``ends``: positions each sequence then has. ``last``:
    how many of them lie in its last block, 1 .. block_size. ``picked``: of each slice that asks for
    a token the row of its last one, in order; the rest is 0.
    """
    fill = 0 if rows is None else rows - len(slices)
    counts = np.array([len(piece.token_ids) for piece in slices] + [1] * fill, dtype=np.int64)
    starts = np.array([piece.start for piece in slices] + [0] * fill, dtype=np.int64)
    ends = starts + counts
    pages = -(-ends // block_size)
    # What a table holds beyond the last position is not read.
    used = [table[:n] for table, n in zip(tables, pages.tolist(), strict=False)]
    blocks = np.concatenate((*used, np.full(fill, scratch, dtype=np.int32)))
    query_starts, page_starts = _starts(counts), _starts(pages)
    total = int(query_starts[-1])
    ids = chain.from_iterable(piece.token_ids for piece in slices)
    token_ids = np.zeros(total, dtype=np.int32)
    token_ids[: total - fill] = np.fromiter(ids, dtype=np.int32, count=total - fill)
    positions = np.arange(total) + np.repeat(starts - query_starts[:-1], counts)
    place = np.repeat(page_starts[:-1], counts) + positions // block_size
    sampled = tuple(i for i, piece in enumerate(slices) if piece.asked)
    picked = np.zeros(len(counts), dtype=np.int64)
    picked[: len(sampled)] = query_starts[1:][list(sampled)] - 1
    return Packed(
        Layout(total, len(counts), len(blocks)),
        {
            "token_ids": token_ids,
            "positions": positions,
            "keys": blocks[place] * (2 * block_size) + positions % block_size,
            "query_starts": query_starts,
            "ends": ends,
            "page_starts": page_starts,
            "last": ends - (pages - 1) * block_size,
            "picked": picked,
            "blocks": blocks,
        },
        int(counts.max()),
        sampled,
    )


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of so many begins, and where the last ends."""
    return np.concatenate((np.zeros(1, dtype=np.int64), counts.cumsum()))
