"""Which pieces a hand-off is cut into, and the check that every piece is the next one. Pure.

Positions are counted in tokens from 0. A hand-off covers ``start .. end - 1`` of every layer;
``start`` is a multiple of the block size (or equals ``end``, when nothing is missing), and only
the last block of the prompt may be partly filled. A piece is always whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from baton.errors import HandoffFailed, InvalidRequest
from baton.identity import CompatibilityClass


class Piece(NamedTuple):
    """Consecutive blocks of one layer: KV of the positions ``start .. end - 1``."""

    layer: int
    start: int  #: a multiple of the block size
    end: int  #: a multiple of the block size, or the end of the prompt


@dataclass(frozen=True, slots=True)
class Shape:
    """What one hand-off covers, known to both sides before the first byte."""

    layers: int
    block_size: int  #: tokens per block
    block_bytes: int  #: of one block of one layer
    start: int  #: first position wanted
    end: int  #: position after the last token of the prompt

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a range that no hand-off can have."""
        if not 0 <= self.start <= self.end:
            raise InvalidRequest(
                f"KV is wanted from token {self.start}, but the prompt has {self.end}"
            )
        if self.start % self.block_size and self.start != self.end:
            raise InvalidRequest(
                f"KV is wanted from token {self.start}, which is no multiple of the "
                f"block size {self.block_size}"
            )

    @classmethod
    def of(cls, compatibility: CompatibilityClass, start: int, end: int) -> Shape:
        """The KV of the positions ``start .. end - 1`` between two workers of a class."""
        return cls(
            layers=compatibility.layers,
            block_size=compatibility.block_size,
            block_bytes=compatibility.block_bytes,
            start=start,
            end=end,
        )

    def blocks(self, piece: Piece) -> range:
        """Indices into the block table that the piece covers."""
        return range(piece.start // self.block_size, -(-piece.end // self.block_size))

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole hand-off."""
        blocks = -(-self.end // self.block_size) - -(-self.start // self.block_size)
        return self.layers * blocks * self.block_bytes


class Cutter:
    """The sender's side: what may be sent, given how far each layer is computed.

    State is one integer per layer, whatever the prompt's length: a reader that lags finds more
    to send at once, not a longer queue.
    """

    def __init__(self, shape: Shape, piece_bytes: int, layers: range | None = None) -> None:
        """``layers`` are those this sender is in charge of, all by default (see stripes)."""
        self._shape = shape
        self._blocks_per_piece = max(1, piece_bytes // shape.block_bytes)
        mine = range(shape.layers) if layers is None else layers
        self._sent = dict.fromkeys(mine, shape.start)

    def sendable(self, computed: list[int]) -> Iterator[Piece]:
        """Pieces not sent yet, up to ``computed[layer]`` of each layer, whole blocks only.

        A piece counts as sent when the iterator moves past it; layers come in order, and what
        ``computed`` says is looked at anew for each piece.
        """
        for layer in self._sent:
            while (piece := self._next(layer, computed[layer])) is not None:
                yield piece
                self._sent[layer] = piece.end

    @property
    def complete(self) -> bool:
        """Every layer was sent to its end."""
        return all(sent == self._shape.end for sent in self._sent.values())

    def _next(self, layer: int, computed: int) -> Piece | None:
        shape, start = self._shape, self._sent[layer]
        whole = computed if computed == shape.end else computed - computed % shape.block_size
        end = min(whole, start + self._blocks_per_piece * shape.block_size)
        return Piece(layer, start, end) if end > start else None


class Assembly:
    """The receiver's side: every piece must be the next one of its layer, whole and to size.

    Whatever is not raises HandoffFailed, naming what came and what was expected; after that the
    hand-off is void and must not be decoded from.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._next = [shape.start] * shape.layers

    @property
    def complete(self) -> bool:
        """Every layer has arrived to its end."""
        return all(expected == self._shape.end for expected in self._next)

    def take(self, piece: Piece, nbytes: int) -> range:
        """Accept a piece with ``nbytes`` of payload; returns the block-table indices it fills."""
        shape, (layer, start, end) = self._shape, piece
        if not 0 <= layer < shape.layers:
            raise HandoffFailed(f"KV of layer {layer} came, but there are {shape.layers} layers")
        expected = self._next[layer]
        if start != expected:
            kind = "repeats" if start < expected else "skips"
            raise HandoffFailed(
                f"KV of layer {layer} {kind} tokens: starts at {start}, {expected} was expected"
            )
        if not start < end <= shape.end:
            raise HandoffFailed(
                f"KV of layer {layer} from {start} ends at {end}, "
                f"but must end after it and at most at {shape.end}"
            )
        if end % shape.block_size and end != shape.end:
            raise HandoffFailed(
                f"KV of layer {layer} ends at {end} within a block of {shape.block_size}, "
                f"but the prompt ends at {shape.end}"
            )
        blocks = shape.blocks(piece)
        if nbytes != len(blocks) * shape.block_bytes:
            raise HandoffFailed(
                f"KV of layer {layer}, tokens {start} to {end}, has {nbytes} bytes, "
                f"but takes {len(blocks) * shape.block_bytes}"
            )
        self._next[layer] = end
        return blocks

    def require_complete(self) -> None:
        """Raise HandoffFailed, naming the first layer that is short, unless all has arrived."""
        for layer, reached in enumerate(self._next):
            if reached != self._shape.end:
                raise HandoffFailed(
                    f"KV ended early: layer {layer} reached token {reached} of {self._shape.end}"
                )
