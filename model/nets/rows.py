"""How torch computes functions of single tokens: everything in the net but attention.

A stage is a function of rows (one row per token): norms, linears, rope, activation. ``PlainRows``
calls it once on all rows of a step. ``TiledRows`` calls it on tiles of exactly 16 rows, so that a
row's result is bitwise a function of that row alone; ``TiledLinear`` does so with one linear. Seen
on torch 2.13 CPU: matrix products change bitwise with the number of rows, and are the same at
every row of a call with fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets.linear import Linear

#: Takes and returns tensors whose first dimension is the token.
Stage = Callable[..., tuple[Tensor, ...]]


class Rows(Protocol):
    def map(self, stage: Stage, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``stage(*inputs)`` for inputs of [n, ...] each; every result is [n, ...] too."""
        ...

    def silu(self, x: Tensor) -> Tensor:
        """x * sigmoid(x), same shape and dtype; to be used inside a stage."""
        ...


class PlainRows:
    """All rows in one call: the fast way."""

    def map(self, stage: Stage, *inputs: Tensor) -> tuple[Tensor, ...]:
        return stage(*inputs)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)


class TiledRows:
    """Sixteen rows in every call, the last tile padded with zeros: the reproducible way."""

    rows = 16

    def map(self, stage: Stage, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = inputs[0].shape[0]
        tiles = [stage(*tile) for tile in zip(*map(self._tiles, inputs), strict=True)]
        return tuple(torch.cat(parts)[:count] for parts in zip(*tiles, strict=True))

    def _tiles(self, x: Tensor) -> list[Tensor]:
        """Tiles [16, ...], each in memory of its own: BLAS may choose its path by alignment."""
        tiles = []
        for rows in torch.split(x, self.rows):
            tile = x.new_zeros(self.rows, *x.shape[1:])
            tile[: rows.shape[0]] = rows
            tiles.append(tile)
        return tiles

    def silu(self, x: Tensor) -> Tensor:
        return each(F.silu, x)


def row_independent(linear: Linear) -> Linear:
    """A linear whose rows do not depend on each other: as it is, or in tiles."""
    return linear if linear.independent else TiledLinear(linear)


class TiledLinear:
    """A linear as ``TiledRows`` would compute it, its tiles filled in one place."""

    independent = True

    def __init__(self, linear: Linear) -> None:
        self._linear = linear
        self.kind, self.shape, self.nbytes = linear.kind, linear.shape, linear.nbytes
        self.rows = linear.rows
        self._tile: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._tile is None:
            self._tile = x.new_zeros(TiledRows.rows, x.shape[1])
        tiles = []
        for rows in torch.split(x, TiledRows.rows):
            # What an earlier tile left in the other rows is in nobody's product.
            self._tile[: rows.shape[0]] = rows
            tiles.append(self._linear(self._tile))
        return tiles[0][: x.shape[0]] if len(tiles) == 1 else torch.cat(tiles)[: x.shape[0]]


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise function by one call per leading index.

    exp takes another path on the elements left over from a whole number of vectors and at the
    borders between threads. In calls of equal shape that is the same for every row.
    """
    return torch.stack([function(rows) for rows in x.unbind(0)])


def require_row_independence(
    linears: Iterable[Linear], dtype: torch.dtype, device: torch.device
) -> None:
    """Try what ``TiledRows`` rests on, on one of the model's linears of every shape and kind.

    Raises ValueError, naming the shape, where a row's product depends bitwise on its place in
    a tile or on the other rows.
    """
    for linear in {(linear.shape, linear.kind): linear for linear in linears}.values():
        if not is_row_independent(linear, dtype, device):
            raise ValueError(
                f"deterministic mode is not possible here: products with a {list(linear.shape)} "
                f"matrix ({linear.kind}, {dtype}, {device}) are not the same at every row"
            )


def is_row_independent(linear: Linear, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a row of a 16-row product is the same bits at any place, beside any others."""
    inputs = linear.shape[1]
    rows = torch.linspace(-1, 1, TiledRows.rows * inputs, device=device)
    tile = rows.sin().view(TiledRows.rows, inputs).to(dtype)
    product = linear(tile)
    moved = linear(tile.roll(1, 0)).roll(-1, 0)
    others = tile.clone()
    others[1::2] = 1
    kept = linear(others)[::2]
    return torch.equal(product, moved) and torch.equal(product[::2], kept)
