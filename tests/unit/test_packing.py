"""A plan as arrays, whatever was packed before it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.cache.pool import KvPool
from model.engine.packing import PackedStep, Packer
from model.engine.plan import Slice

SIZE = 4


@pytest.fixture(scope="module")
def pool() -> KvPool:
    device = torch.device("cpu")
    return KvPool(layers=1, num_blocks=100, block_size=SIZE, kv_heads=1, head_dim=2, device=device)


def require_packed(step: PackedStep, slices: list[Slice]) -> None:
    """Everything, token by token."""
    ids, positions, keys, first = [], [], [], 0
    for piece, span in zip(slices, step.spans, strict=True):
        count = len(piece.token_ids)
        assert (span.first, span.count, span.start) == (first, count, piece.start)
        assert span.table.tolist() == list(piece.block_table)
        ids += piece.token_ids
        for position in range(piece.start, piece.end):
            positions.append(position)
            block = piece.block_table[position // SIZE]
            keys.append(block * 2 * SIZE + position % SIZE)
        first += count
    assert step.token_ids.tolist() == ids
    assert step.positions.tolist() == positions
    assert step.rows.tolist() == keys + [key + SIZE for key in keys]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=4), max_size=8))
def test_step_after_step(pool: KvPool, steps: list[list[tuple[int, int]]]) -> None:
    """Sequences that come, grow in the same list, stay away for a step and come back."""
    packer, fresh = Packer(pool), iter(range(10**6))
    tables: dict[int, list[int]] = {}
    lengths: dict[int, int] = {}
    for step in steps:
        slices = []
        for seq, count in dict(step).items():
            table, start = tables.setdefault(seq, []), lengths.get(seq, 0)
            while len(table) * SIZE < start + count:
                table.append(next(fresh) % pool.num_blocks)
            lengths[seq] = start + count
            slices.append(Slice(seq, tuple(range(start, start + count)), start, table))
        if slices:
            require_packed(packer.pack(slices), slices)


def test_a_block_that_is_replaced_before_it_is_written(pool: KvPool) -> None:
    packer, table = Packer(pool), [7, 8]
    for position in (4, 5):
        table[1] += position
        piece = Slice(0, [1], position, table)
        require_packed(packer.pack([piece]), [piece])


def test_another_sequence_of_the_same_number(pool: KvPool) -> None:
    packer = Packer(pool)
    for table in ([7, 8], [9, 8]):
        piece = Slice(0, [1], 4, table)
        require_packed(packer.pack([piece]), [piece])


def test_a_table_that_stayed_as_it_was_is_not_read_again(pool: KvPool) -> None:
    packer, table = Packer(pool), [7, 8]
    first, second = (packer.pack([Slice(0, [1], at, table)]).spans[0].table for at in (4, 5))
    assert first is second
