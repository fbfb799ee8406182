"""What a hand-off is cut into, that it fits together again, and that nothing else does."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import HandoffFailed, RequestError
from baton.kv.encoding import decode, encode
from baton.kv.framing import Assembly, Cutter, Piece, Shape
from baton.v1 import kv_pb2

BLOCK_BYTES = 32


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    size = draw(st.integers(1, 8))
    end = draw(st.integers(1, 60))
    start = draw(st.integers(0, end // size)) * size
    return Shape(draw(st.integers(1, 4)), size, BLOCK_BYTES, start, end)


def size_of(shape: Shape, piece: Piece) -> int:
    return len(shape.blocks(piece)) * shape.block_bytes


def everything(shape: Shape, piece_bytes: int = 2 * BLOCK_BYTES) -> list[Piece]:
    return list(Cutter(shape, piece_bytes).sendable([shape.end] * shape.layers))


@given(shapes(), st.integers(1, 200), st.data())
def test_whatever_the_progress_the_pieces_cover_all_once(
    shape: Shape, piece_bytes: int, data: st.DataObject
) -> None:
    cutter, assembly = Cutter(shape, piece_bytes), Assembly(shape)
    computed = [0] * shape.layers
    while computed != [shape.end] * shape.layers:
        layer = data.draw(st.sampled_from([i for i, c in enumerate(computed) if c < shape.end]))
        computed[layer] = data.draw(st.integers(computed[layer] + 1, shape.end))
        for piece in cutter.sendable(computed):
            assert piece.end <= computed[piece.layer]
            assert piece.start % shape.block_size == 0
            assert piece.end % shape.block_size == 0 or piece.end == shape.end
            assert size_of(shape, piece) <= max(piece_bytes, shape.block_bytes)
            assembly.take(piece, size_of(shape, piece))
    assert cutter.complete and assembly.complete
    assembly.require_complete()


@given(shapes(), st.integers(1, 5))
def test_stripes_share_the_layers(shape: Shape, stripes: int) -> None:
    assembly = Assembly(shape)
    for stripe in range(stripes):
        cutter = Cutter(shape, BLOCK_BYTES, range(stripe, shape.layers, stripes))
        for piece in cutter.sendable([shape.end] * shape.layers):
            assembly.take(piece, size_of(shape, piece))
        assert cutter.complete
    assembly.require_complete()


@given(shapes(), st.data())
def test_any_piece_but_the_next_fails(shape: Shape, data: st.DataObject) -> None:
    pieces = everything(shape)
    if not pieces:
        return
    done = data.draw(st.integers(0, len(pieces) - 1))
    assembly = Assembly(shape)
    for piece in pieces[:done]:
        assembly.take(piece, size_of(shape, piece))
    numbers = st.integers(-2, shape.end + 9)
    odd = Piece(
        data.draw(st.integers(-2, shape.layers + 1)), data.draw(numbers), data.draw(numbers)
    )
    reached = {piece.layer: piece.end for piece in pieces[:done]}
    nbytes = data.draw(st.sampled_from([0, BLOCK_BYTES, size_of(shape, odd), 3 * BLOCK_BYTES]))
    fits = (
        0 <= odd.layer < shape.layers
        and odd.start == reached.get(odd.layer, shape.start)
        and odd.start < odd.end <= shape.end
        and (odd.end % shape.block_size == 0 or odd.end == shape.end)
        and nbytes == size_of(shape, odd)
    )
    if fits:
        assert assembly.take(odd, nbytes) == shape.blocks(odd)
        return
    with pytest.raises(HandoffFailed):
        assembly.take(odd, nbytes)


@pytest.mark.parametrize(
    ("piece", "nbytes", "says"),
    [
        (Piece(0, 8, 12), 32, "skips tokens: starts at 8, 4 was expected"),
        (Piece(0, 0, 4), 32, "repeats tokens: starts at 0, 4 was expected"),
        (Piece(0, 4, 6), 32, "ends at 6 within a block of 4"),
        (Piece(0, 4, 8), 31, "has 31 bytes, but takes 32"),
        (Piece(0, 4, 12), 96, "at most at 10"),
        (Piece(2, 0, 4), 32, "layer 2 came, but there are 2 layers"),
    ],
)
def test_failures_name_both_numbers(piece: Piece, nbytes: int, says: str) -> None:
    assembly = Assembly(Shape(2, 4, BLOCK_BYTES, 0, 10))
    assembly.take(Piece(0, 0, 4), 32)
    with pytest.raises(HandoffFailed, match=says):
        assembly.take(piece, nbytes)


def test_an_early_end_is_named() -> None:
    assembly = Assembly(Shape(1, 4, BLOCK_BYTES, 0, 10))
    assembly.take(Piece(0, 0, 8), 64)
    with pytest.raises(HandoffFailed, match="layer 0 reached token 8 of 10"):
        assembly.require_complete()


def test_nothing_is_missing_when_all_is_cached() -> None:
    shape = Shape(2, 4, BLOCK_BYTES, 8, 8)
    assert everything(shape) == [] and Assembly(shape).complete and shape.total_bytes == 0


@pytest.mark.parametrize(("start", "end"), [(3, 10), (12, 10), (-4, 10)])
def test_impossible_ranges(start: int, end: int) -> None:
    with pytest.raises(RequestError, match=str(start)):
        Shape(2, 4, BLOCK_BYTES, start, end)


@given(shapes())
def test_total_bytes(shape: Shape) -> None:
    assert shape.total_bytes == sum(size_of(shape, piece) for piece in everything(shape))


# -- on the wire -----------------------------------------------------------------------------

pieces = st.builds(Piece, st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 2**31))


@given(pieces, st.lists(st.binary(max_size=300), max_size=4))
def test_encoding_is_ordinary_protobuf(piece: Piece, payload: list[bytes]) -> None:
    message = encode(piece, [memoryview(part) for part in payload])
    plain = kv_pb2.KvFrame.FromString(message)
    assert (plain.layer, plain.start_token, plain.end_token) == piece
    assert plain.payload == b"".join(payload)
    head, view = decode(message)
    assert (head.layer, head.start_token, head.end_token) == piece and not head.payload
    assert view == b"".join(payload)


@given(pieces, st.lists(st.integers(0, 2**32 - 1), max_size=5), st.binary(max_size=300))
def test_what_protobuf_wrote_is_read(piece: Piece, checksums: list[int], payload: bytes) -> None:
    layer, start, end = piece
    frame = kv_pb2.KvFrame(
        layer=layer, start_token=start, end_token=end, checksums=checksums, payload=payload
    )
    head, view = decode(frame.SerializeToString())
    assert list(head.checksums) == checksums and view == payload


@given(pieces, st.binary(min_size=1, max_size=300), st.data())
def test_a_cut_message_is_never_a_shorter_frame(
    piece: Piece, payload: bytes, data: st.DataObject
) -> None:
    message = encode(piece, [memoryview(payload)])
    cut = message[: data.draw(st.integers(0, len(message) - 1))]
    try:
        _, view = decode(cut)
    except HandoffFailed:
        return
    assert view == b""  # cut before the payload: refused by its size


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_empty_handed(message: bytes) -> None:
    with suppress(HandoffFailed):
        decode(message)


def test_a_number_without_end_is_refused_at_once() -> None:
    with pytest.raises(HandoffFailed, match="64 bits"):
        decode(b"\x7a" + b"\xff" * 2**24)
