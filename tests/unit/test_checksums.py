"""Checksums of KV blocks: whatever is damaged on its way is caught, on each transport."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import HandoffFailed
from baton.kv import checksums
from baton.kv.checksums import SUM_BYTES, Policy, measure_rate, of_blocks, of_payload
from baton.kv.encoding import decode, encode
from baton.kv.framing import Piece, Shape
from baton.kv.shm.segment import Geometry, ReadOnlySegment, Segment
from baton.kv.transport import Sink
from tests.shm import BLOCK, BLOCK_BYTES, LAYERS, MemoryStore

blocks = st.integers(1, 6)


class Arrival:
    """A piece of random blocks of layer 0, and the sink that waits for it."""

    def __init__(self, count: int, *, checksums: bool = True) -> None:
        self.piece = Piece(0, 0, count * BLOCK)
        self.payload = os.urandom(count * BLOCK_BYTES)
        self.sums = of_payload(memoryview(self.payload), BLOCK_BYTES)
        self.store = MemoryStore(count)
        shape = Shape(LAYERS, BLOCK, BLOCK_BYTES, 0, self.piece.end)
        self.sink = Sink(shape, self.store, range(count))
        self.sink.checksums = checksums

    def arrives(self, payload: memoryview, sums: Sequence[int]) -> None:
        before = self.store.pool.copy()
        try:
            asyncio.run(self.sink.write(self.piece, payload, sums))
        except HandoffFailed:
            assert (self.store.pool == before).all(), "what is damaged is not written"
            raise
        assert self.store.pool[0].tobytes() == self.payload

    def frame(self) -> bytearray:
        parts = [
            memoryview(self.payload)[at : at + BLOCK_BYTES]
            for at in range(0, len(self.payload), BLOCK_BYTES)
        ]
        assert of_blocks(parts) == self.sums
        return bytearray(encode(self.piece, parts, self.sums))


def test_it_is_crc_32c() -> None:
    """The check value of the algorithm's definition."""
    assert of_blocks([memoryview(b"123456789")]) == [0xE3069283]


@given(blocks, st.data())
def test_a_damaged_frame(count: int, data: st.DataObject) -> None:
    arrival = Arrival(count)
    frame = arrival.frame()
    packed = b"".join(value.to_bytes(SUM_BYTES, "little") for value in arrival.sums)
    first_sum = frame.index(packed)
    places = st.one_of(
        st.integers(first_sum, first_sum + len(packed) - 1),
        st.integers(len(frame) - len(arrival.payload), len(frame) - 1),
    )
    frame[data.draw(places)] ^= data.draw(st.integers(1, 255))
    head, payload = decode(bytes(frame))
    with pytest.raises(HandoffFailed, match="damaged"):
        arrival.arrives(payload, head.checksums)


@given(blocks)
def test_an_undamaged_frame(count: int) -> None:
    arrival = Arrival(count)
    head, payload = decode(bytes(arrival.frame()))
    arrival.arrives(payload, head.checksums)


@given(blocks, st.booleans(), st.data())
def test_a_damaged_slot(count: int, in_sums: bool, data: st.DataObject) -> None:
    arrival = Arrival(count)
    mine = Segment(Geometry(2, count * BLOCK_BYTES, count))
    mine.reserve()
    theirs = ReadOnlySegment(os.dup(mine.descriptor), mine.geometry)
    theirs.map()
    try:
        with mine.slot(1) as slot:
            slot[:] = arrival.payload
        mine.put_sums(1, arrival.sums)
        with theirs.slot(1, len(arrival.payload)) as payload:
            arrival.arrives(payload, theirs.sums(1, count))
        arrival = Arrival(count)
        with mine.slot(1) as slot:
            slot[:] = arrival.payload
        flip = data.draw(st.integers(1, 255))
        if in_sums:
            at, shift = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))
            arrival.sums[at] ^= flip << 8 * shift
        else:
            with mine.slot(1) as slot:
                slot[data.draw(st.integers(0, len(slot) - 1))] ^= flip
        mine.put_sums(1, arrival.sums)
        with (
            theirs.slot(1, len(arrival.payload)) as payload,
            pytest.raises(HandoffFailed, match="damaged"),
        ):
            arrival.arrives(payload, theirs.sums(1, count))
    finally:
        mine.close()
        theirs.close()


def test_the_sums_of_slots_lie_apart_and_within_the_ring() -> None:
    geometry = Geometry(3, 4 * BLOCK_BYTES, 4)
    mine = Segment(geometry)
    mine.reserve()
    kept = {slot: tuple(range(slot * 10, slot * 10 + 4)) for slot in range(3)}
    for slot, sums in kept.items():
        with mine.slot(slot) as target:
            target[:] = bytes([255]) * len(target)
        mine.put_sums(slot, sums)
    theirs = ReadOnlySegment(os.dup(mine.descriptor), geometry)
    theirs.map()
    for slot, sums in kept.items():
        assert theirs.sums(slot, 4) == sums
        with theirs.slot(slot, geometry.slot_bytes) as payload:
            assert payload == bytes([255]) * len(payload)
    assert geometry.sums(2, 4)[1] == geometry.total_bytes
    with pytest.raises(ValueError, match="5 checksums in a slot of 4 blocks"):
        mine.put_sums(0, [0] * 5)
    with pytest.raises(ValueError, match="5 checksums"):
        theirs.sums(0, 5)
    mine.close()
    theirs.close()


@pytest.mark.parametrize(("change", "came"), [(lambda s: s[1:], 2), (lambda s: [*s, 7], 4)])
def test_one_for_each_block(change: object, came: int) -> None:
    arrival = Arrival(3)
    with pytest.raises(HandoffFailed, match=f"came with {came} checksums for 3 blocks"):
        arrival.arrives(memoryview(arrival.payload), change(arrival.sums))  # type: ignore[operator]


def test_none_that_were_not_agreed_on() -> None:
    arrival = Arrival(3, checksums=False)
    with pytest.raises(HandoffFailed, match="3 checksums, but none were agreed on"):
        arrival.arrives(memoryview(arrival.payload), arrival.sums)


def test_the_block_is_named() -> None:
    piece, came = Piece(7, 32, 58), [1, 2]
    with pytest.raises(
        HandoffFailed,
        match="layer 7, tokens 48 to 58, is damaged: its CRC-32C is 0x00000003, 0x00000002 was",
    ):
        checksums.verify(piece, 16, came, [1, 3])


@pytest.mark.parametrize(
    ("mode", "bytes_per_s", "wanted"),
    [
        ("auto", 0.0, False),  # not measured yet
        ("auto", 0.9e8, True),  # each byte is summed twice: 1.8 % of the time it takes
        ("auto", 1.1e8, False),
        ("on", 1e12, True),
        ("off", 1.0, False),
    ],
)
def test_when_they_are_wanted(mode: str, bytes_per_s: float, wanted: bool) -> None:
    assert Policy(mode, 1e10).wanted(bytes_per_s) is wanted  # type: ignore[arg-type]


def test_the_rate_is_measured() -> None:
    assert measure_rate(8192) > 1e6
    assert measure_rate(4 * 2**20) > 1e6
