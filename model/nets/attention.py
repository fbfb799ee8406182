"""Attention that reads nothing but the paged FP16 cache, the current tokens included.

That makes a token's result a function of the cache alone: the same whether its prompt was
computed here, came from the prefix cache or was handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of the packed tokens.

    Its queries are rows ``first .. first + count - 1`` of the pack and stand at positions
    ``start .. start + count - 1``.
    """

    first: int
    count: int
    start: int
    table: Tensor  #: int64 block ids, covering every position below ``end``

    @property
    def end(self) -> int:
        return self.start + self.count


class LayerCache(Protocol):
    """The one thing attention asks of the pool."""

    @property
    def block_size(self) -> int: ...

    def layer(self, index: int) -> Tensor:
        """One layer as it is, FP16 [blocks, 2 (K, V), block_size, kv_heads, head_dim]."""
        ...

    def read(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of whole blocks, FP16 [len(table) * block_size, kv_heads, head_dim] each."""
        ...


class Attention(Protocol):
    def __call__(
        self, layer: int, q: Tensor, cache: LayerCache, spans: Sequence[Span], window: int | None
    ) -> Tensor:
        """Causal attention of q [n, heads, head_dim] over each span's cached keys.

        With a ``window``, a query sees that many keys, its own included. Returns
        [n, heads * head_dim] in q's dtype.
        """
        ...


def first_visible(position: int, window: int | None) -> int:
    """The lowest key position that a query at ``position`` sees."""
    return 0 if window is None else max(0, position - window + 1)


class PlainAttention:
    """One scaled_dot_product_attention call per sequence, in ``dtype``.

    ``dtype`` is what the device's matrix units know: FP16 on CUDA (accumulated in FP32), bfloat16
    or float32 on a CPU.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(
        self, layer: int, q: Tensor, cache: LayerCache, spans: Sequence[Span], window: int | None
    ) -> Tensor:
        out = torch.empty_like(q)
        for span in spans:
            rows = slice(span.first, span.first + span.count)
            out[rows] = self._one(layer, q[rows], cache, span, window)
        return out.flatten(1)

    def _one(
        self, layer: int, q: Tensor, cache: LayerCache, span: Span, window: int | None
    ) -> Tensor:
        """Attention of one sequence: [count, heads, head_dim] in and out."""
        size = cache.block_size
        skipped = first_visible(span.start, window) // size  # whole blocks out of every window
        base = skipped * size
        k, v = cache.read(layer, span.table[skipped : -(-span.end // size)])
        k = self._cast(k[: span.end - base]).transpose(0, 1)
        v = self._cast(v[: span.end - base]).transpose(0, 1)
        if span.count == 1:
            return self._decode(q[0], k, v, first_visible(span.start, window) - base).to(q.dtype)
        mask = None
        if base or span.start or window is not None:
            mask = _visible(span.start, span.count, base, span.end, window, q.device)
        out = F.scaled_dot_product_attention(
            q.to(self._dtype).transpose(0, 1)[None],
            k[None],
            v[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=q.shape[1] != k.shape[0],
        )
        return out[0].transpose(0, 1).to(q.dtype)

    def _cast(self, cached: Tensor) -> Tensor:
        """On a CPU, FP16 to bfloat16 by way of float32 takes a fifth of the time."""
        if cached.device.type == "cpu":
            cached = cached.float()
        return cached.to(self._dtype)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        """One query: the heads of a group are the rows of one product with their shared keys."""
        grouped = q.to(self._dtype).view(k.shape[0], -1, q.shape[-1])
        out = F.scaled_dot_product_attention(grouped[None], k[None, :, first:], v[None, :, first:])
        return out.view(1, *q.shape)


def _visible(
    start: int, count: int, base: int, end: int, window: int | None, device: torch.device
) -> Tensor:
    """Which keys at ``base .. end - 1`` each query sees: bool [count, end - base]."""
    queries = torch.arange(start, start + count, device=device)[:, None]
    keys = torch.arange(base, end, device=device)
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible
