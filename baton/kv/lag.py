"""How far the reader of one hand-off is behind what is computed, and when that is too far. Pure."""

from __future__ import annotations

from collections.abc import Callable

from baton.kv.framing import Piece, Shape


class Lag:
    """Told what is computed and what is taken; tells when the reader falls behind or catches up.

    It is behind once more than ``bound`` bytes are computed and not taken, until at most half of
    that are left. KV that was in the prefix cache does not count: it was there at once, and a
    reader is not slow for having much to take.
    """

    def __init__(self, shape: Shape, cached: int, bound: int, tell: Callable[[bool], None]) -> None:
        """``cached``: tokens found in the prefix cache. ``tell``: is the reader behind now?"""
        first = max(shape.start, cached)
        self._computed = [first] * shape.layers
        self._taken = [first] * shape.layers
        self._token_bytes = shape.block_bytes / shape.block_size
        self._bound = bound
        self._tell = tell
        self._tokens = 0  # computed and not taken, summed over the layers
        self._behind = False

    def computed(self, layer: int, end: int) -> None:
        """KV of ``layer`` is computed below position ``end``."""
        self._tokens += _raise(self._computed, layer, end)
        self._look()

    def taken(self, piece: Piece) -> None:
        """The piece is out of the pool. Of a layer, pieces are taken in order."""
        self._tokens -= _raise(self._taken, piece.layer, piece.end)
        self._look()

    def _look(self) -> None:
        waiting = self._tokens * self._token_bytes
        behind = waiting > (self._bound / 2 if self._behind else self._bound)
        if behind is not self._behind:
            self._behind = behind
            self._tell(behind)


def _raise(reached: list[int], layer: int, end: int) -> int:
    """Move a layer's position up to ``end``; returns by how much."""
    gain = max(0, end - reached[layer])
    reached[layer] += gain
    return gain
