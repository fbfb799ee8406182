"""What a CUDA step is told, made without a device: integers, batch sizes, block tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.cache.pool import KvPool
from model.cuda.buckets import bucket_of, bucket_sizes, splits_for
from model.cuda.buffers import Mirror
from model.cuda.packing import Tables, pack
from model.engine.plan import Sample, Slice
from tests.runners import GREEDY

ASKED = Sample(GREEDY, (), ())


@given(st.integers(1, 600))
def test_every_batch_has_a_size_that_is_little_larger(most: int) -> None:
    sizes = bucket_sizes(most)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == most
    for count in range(1, most + 1):
        size = bucket_of(count, sizes)
        assert size is not None and count <= size < count + max(8, count) and size in sizes
    assert bucket_of(most + 1, sizes) is None
    assert len(sizes) < 12 + most / 32


def test_keys_are_split_until_a_device_is_busy() -> None:
    assert splits_for(8, 132) == 32  # one sequence
    assert splits_for(8 * 64, 132) == 1
    assert splits_for(1, 1) == 2


class TableMaker:
    def __init__(self) -> None:
        self.next = 0

    def __call__(self, tokens: int, size: int) -> list[int]:
        count = -(-tokens // size)
        self.next += count
        return list(range(100 + self.next, 100 + self.next - count, -1))


slices_strategy = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 40), st.booleans()), min_size=1, max_size=6
)


@given(slices_strategy, st.integers(1, 7))
def test_what_is_packed_says_where_everything_is(
    wanted: list[tuple[int, int, bool]], size: int
) -> None:
    make = TableMaker()
    slices = [
        # A table may be longer than what is computed so far.
        Slice(
            i,
            [10 * i + t for t in range(n)],
            start,
            [*make(start + n, size), 7],
            ASKED if asks else None,
        )
        for i, (n, start, asks) in enumerate(wanted)
    ]
    packed = pack(slices, Tables(size).of(slices), size)
    buffer = np.full(packed.layout.size + 5, -1, dtype=np.int32)
    packed.write(buffer)
    parts = {name: buffer[place] for name, place in packed.layout.parts().items()}
    assert (buffer[packed.layout.size :] == -1).all()
    assert all(place.start % 4 == 0 for place in packed.layout.parts().values())
    pool = KvPool(
        layers=1,
        num_blocks=1,
        block_size=size,
        kv_heads=1,
        head_dim=2,
        device=torch.device("cpu"),
    )
    rows = []
    for i, piece in enumerate(slices):
        first, end = parts["query_starts"][i : i + 2]
        assert parts["token_ids"][first:end].tolist() == piece.token_ids
        assert parts["positions"][first:end].tolist() == list(range(piece.start, piece.end))
        assert parts["ends"][i] == piece.end
        page, behind = parts["page_starts"][i : i + 2]
        assert parts["blocks"][page:behind].tolist() == list(piece.block_table[:-1])
        assert (behind - page - 1) * size + parts["last"][i] == piece.end
        where = np.arange(piece.start, piece.end)
        table = np.array(piece.block_table)
        # As the CPU's pool lays rows out.
        keys = pool.rows_of(table[where // size], where % size)[: len(where)]
        assert parts["keys"][first:end].tolist() == keys.tolist()
        if piece.sample is not None:
            rows.append(end - 1)
    assert parts["picked"][: len(rows)].tolist() == rows
    assert packed.longest == max(n for n, _, _ in wanted)


def test_a_batch_is_filled_up_with_sequences_in_the_spare_block() -> None:
    slices = [Slice(0, [5], 17, [3, 9, 4], ASKED), Slice(1, [6], 16, [8, 2], ASKED)]
    packed = pack(slices, Tables(16).of(slices), 16, rows=4, scratch=50)
    values = {name: array.tolist() for name, array in packed.values.items()}
    assert values["token_ids"] == [5, 6, 0, 0]
    assert values["positions"] == [17, 16, 0, 0]
    assert values["keys"] == [9 * 32 + 1, 2 * 32, 50 * 32, 50 * 32]
    assert values["blocks"] == [3, 9, 8, 2, 50, 50]
    assert values["ends"] == [18, 17, 1, 1]
    assert values["last"] == [2, 1, 1, 1]
    assert packed.longest == 1
    empty = pack((), (), 16, rows=2, scratch=50)
    assert empty.values["blocks"].tolist() == [50, 50]


def test_captured_inputs_stay_where_they_are() -> None:
    """Only the blocks, which come last, depend on how long the sequences are."""
    mirror = Mirror(200, torch.device("cpu"))
    seen = set()
    for end in (1, 30, 33, 100):
        piece = Slice(0, [1], end - 1, list(range(10)), ASKED)
        step = mirror.upload(pack((piece,), Tables(16).of((piece,)), 16, rows=4, scratch=11), 4)
        inputs = step.device
        tensors = (inputs.token_ids, inputs.keys, inputs.ends, inputs.page_starts, inputs.blocks)
        seen.add(tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors))
        assert inputs.ends.tolist() == [end, 1, 1, 1]
    assert len(seen) == 1


def test_a_step_that_does_not_fit_is_refused() -> None:
    piece = Slice(0, [1] * 100, 0, list(range(7)))
    packed = pack((piece,), Tables(16).of((piece,)), 16)
    with pytest.raises(ValueError, match="does not fit a buffer of 50"):
        Mirror(50, torch.device("cpu")).upload(packed)


@given(st.lists(st.sampled_from(["grow", "grow", "replace", "renew", "stay"]), max_size=30))
def test_kept_tables_follow_the_lists(changes: list[str]) -> None:
    """A sequence in its second last block, which has another one reserved behind it."""
    tables, fresh = Tables(16), iter(range(1000))
    table = [next(fresh), next(fresh)]
    other = [next(fresh), next(fresh)]
    for change in changes:
        if change == "grow":
            table.append(next(fresh))
        elif change == "replace":  # copied on write: a block that is not full, in place
            table[-2] = next(fresh)
        elif change == "renew":
            table = [next(fresh) for _ in table]
        start = 16 * (len(table) - 2) + 3
        found = tables.of([Slice(0, [1], start, table), Slice(1, [1], 0, other)])
        assert [array.tolist() for array in found] == [table, other]
        assert all(array.dtype == np.int32 for array in found)
