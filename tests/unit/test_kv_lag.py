"""When a reader is behind, and when it has caught up."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from baton.kv.framing import Cutter, Piece, Shape
from baton.kv.lag import Lag

TOKEN_BYTES = 8
SHAPE = Shape(layers=2, block_size=4, block_bytes=4 * TOKEN_BYTES, start=0, end=64)


def test_behind_above_the_bound_until_half_of_it() -> None:
    said: list[bool] = []
    lag = Lag(SHAPE, 0, 32 * TOKEN_BYTES, said.append)
    lag.computed(0, 16)
    lag.computed(1, 16)
    assert said == [], "as much as the bound is not beyond it"
    lag.computed(0, 20)
    assert said == [True]
    lag.taken(Piece(0, 0, 16))
    assert said == [True], "20 of 32 tokens are more than half"
    lag.taken(Piece(1, 0, 4))
    assert said == [True, False]
    lag.computed(0, 36)
    assert said == [True, False], "32 tokens again"


def test_what_was_cached_or_is_not_wanted_does_not_count() -> None:
    said: list[bool] = []
    cached = Lag(SHAPE, 48, 0, said.append)
    cached.computed(0, 48)
    cached.taken(Piece(0, 0, 16))
    assert said == []
    cached.computed(0, 49)
    assert said == [True]
    late = Lag(Shape(2, 4, 32, start=60, end=64), 48, 0, said.append)
    late.computed(0, 60)
    assert said == [True]


@given(
    st.integers(0, 64),
    st.integers(0, 600),
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 9)), max_size=20),
)
def test_behind_is_what_is_computed_less_what_was_taken(
    cached: int, bound: int, piece_bytes: int, course: list[tuple[int, int, int]]
) -> None:
    """``course``: of which layer how many tokens are computed, and then how many pieces taken."""
    said = [False]
    lag = Lag(SHAPE, cached, bound, said.append)
    computed, taken = [cached] * SHAPE.layers, [0] * SHAPE.layers
    cutter = Cutter(SHAPE, piece_bytes)

    def waiting() -> int:
        return TOKEN_BYTES * sum(
            reached - max(cached, got) for reached, got in zip(computed, taken, strict=True)
        )

    for layer, tokens, pieces in [*course, (0, 64, 99), (1, 64, 99)]:
        computed[layer] = min(SHAPE.end, computed[layer] + tokens)
        lag.computed(layer, computed[layer])
        assert said[-1] or waiting() <= bound
        for piece, _ in zip(cutter.sendable(computed), range(pieces), strict=False):
            taken[piece.layer] = piece.end
            lag.taken(piece)
            assert waiting() > bound / 2 if said[-1] else waiting() <= bound
    assert not said[-1], "who has everything is not behind"
    assert all(before is not after for before, after in pairwise(said))
