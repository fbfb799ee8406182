"""Attention whose result for a query is bitwise a function of its position and the cache.

Neither the batch, nor where a chunk begins or ends, nor how much of the prompt was cached may
show in a single bit, so every call has fixed shapes and a query's place in it is fixed too:

- Keys are cut in splits of 256 counted from position 0, the last one filled up with zeros.
- Queries stand in tiles counted from position 0: a query's row follows from its position. (Seen
  with MKL: some products round differently at different rows, none by what other rows hold.)
- Splits are combined from left to right by the online softmax (Milakov and Gimelshein, 2018).
  A split that is hidden from a query changes nothing: its weights are exp(-inf) = 0, and its
  factor is exp(0) = 1, both exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.nets.attention import LayerCache, Span, first_visible
from model.nets.rows import each

_SPLIT = 256  # keys
_ROWS = 16  # rows of a tile are a multiple of this: query heads times queries
_FLOOR = -1e30  # a running maximum before any key; finite, so that -inf - _FLOOR is no NaN


class SplitAttention:
    """Deterministic attention in float32, whatever the model's dtype."""

    def __call__(
        self, layer: int, q: Tensor, cache: LayerCache, spans: Sequence[Span], window: int | None
    ) -> Tensor:
        out = torch.empty_like(q)
        for span in spans:
            rows = slice(span.first, span.first + span.count)
            out[rows] = _attend(layer, q[rows], cache, span, window)
        return out.flatten(1)


def _attend(layer: int, q: Tensor, cache: LayerCache, span: Span, window: int | None) -> Tensor:
    """Attention of one sequence: [count, heads, head_dim] in; out the same, in float32."""
    _, heads, head_dim = q.shape
    low = first_visible(span.start, window) // _SPLIT
    keys, values = _splits(layer, cache, span, low)
    group = heads // keys.shape[1]
    per_tile = max(1, _ROWS // group)
    tiles = range(span.start // per_tile, (span.end - 1) // per_tile + 1)
    skipped = span.start - tiles[0] * per_tile  # queries of the first tile that are not ours
    laid = q.new_zeros(len(tiles) * per_tile, heads, head_dim, dtype=torch.float32)
    laid[skipped : skipped + span.count] = q.float() * head_dim**-0.5
    results = []
    for tile, queries in zip(tiles, torch.split(laid, per_tile), strict=True):
        first = max(tile * per_tile, span.start)
        last = min((tile + 1) * per_tile, span.end) - 1
        splits = range(first_visible(first, window) // _SPLIT, last // _SPLIT + 1)
        hidden = [_hidden(split, tile * per_tile, per_tile, group, window) for split in splits]
        mixed = _tile(
            _to_rows(queries, group),
            [keys[split - low] for split in splits],
            [values[split - low] for split in splits],
            [mask.to(q.device) for mask in hidden],
        )
        results.append(_from_rows(mixed, per_tile, group))
    return torch.cat(results)[skipped : skipped + span.count]


def _splits(layer: int, cache: LayerCache, span: Span, low: int) -> tuple[Tensor, Tensor]:
    """K and V from split ``low`` on, float32 [splits, kv_heads, _SPLIT, head_dim] each.

    Zeros follow the last key: what a block holds beyond it is another sequence's leftover, and
    may not even be finite.
    """
    size = cache.block_size
    first_block = low * _SPLIT // size
    skipped = low * _SPLIT - first_block * size
    count = span.end - low * _SPLIT
    splits = -(-count // _SPLIT)

    def cut(cached: Tensor) -> Tensor:
        padded = cached.new_zeros(splits * _SPLIT, *cached.shape[1:], dtype=torch.float32)
        padded[:count] = cached[skipped : skipped + count]
        return padded.view(splits, _SPLIT, *cached.shape[1:]).transpose(1, 2).contiguous()

    k, v = cache.read(layer, span.table[first_block : -(-span.end // size)])
    return cut(k), cut(v)


def _to_rows(queries: Tensor, group: int) -> Tensor:
    """[per_tile, heads, head_dim] -> [kv_heads, rows, head_dim], rows filled up to 16s."""
    per_tile, heads, head_dim = queries.shape
    rows = math.ceil(per_tile * group / _ROWS) * _ROWS
    laid = queries.new_zeros(heads // group, rows, head_dim)
    by_head = queries.view(per_tile, heads // group, group, head_dim).transpose(0, 1)
    laid[:, : per_tile * group] = by_head.flatten(1, 2)
    return laid


def _from_rows(mixed: Tensor, per_tile: int, group: int) -> Tensor:
    """The inverse of ``_to_rows``."""
    real = mixed[:, : per_tile * group]
    by_head = real.reshape(mixed.shape[0], per_tile, group, mixed.shape[2])
    return by_head.transpose(0, 1).flatten(1, 2)


def _hidden(split: int, first: int, per_tile: int, group: int, window: int | None) -> Tensor:
    """Which keys of a split a tile's rows do not see: bool [rows, _SPLIT]."""
    rows = math.ceil(per_tile * group / _ROWS) * _ROWS
    queries = first + torch.arange(rows)[:, None] // group
    keys = split * _SPLIT + torch.arange(_SPLIT)
    hidden = keys > queries
    return hidden if window is None else hidden | (keys <= queries - window)


def _tile(q: Tensor, keys: list[Tensor], values: list[Tensor], hidden: list[Tensor]) -> Tensor:
    """Attention of one tile [kv_heads, rows, head_dim] over its splits, in order."""
    top = q.new_full((*q.shape[:2], 1), _FLOOR)
    total = torch.zeros_like(top)
    mixed = torch.zeros_like(q)
    for k, v, mask in zip(keys, values, hidden, strict=True):
        scores = torch.bmm(q, k.transpose(1, 2)).masked_fill_(mask, -math.inf)
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        # The old maximum rides along as 16 more columns: its factor comes out of the same exp,
        # and the number of columns stays a whole number of vectors.
        exponents = torch.cat((scores, top.expand(-1, -1, _ROWS)), dim=-1) - higher
        powers = each(torch.exp, exponents)
        weights, factor = powers[..., :_SPLIT].contiguous(), powers[..., _SPLIT:][..., :1]
        total = total * factor + weights.sum(-1, keepdim=True)
        mixed = mixed * factor + torch.bmm(weights, v)
        top = higher
    return mixed / total
