"""One decoder-only transformer for all supported families, in plain torch.

A layer is two stages of single tokens with attention between them; the caller supplies the
attention, which also owns the KV cache. Weights are fused at load: q, k and v are one matrix, so
are gate and up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets.config import ModelConfig
from model.nets.linear import Linear, Lookup
from model.nets.rope import RopeTable, rotate
from model.nets.rows import Rows

#: (layer, q [n, heads, head_dim], k and v [n, kv_heads, head_dim]) -> [n, heads * head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All tensors share the model's dtype and device."""

    attention_norm: Tensor  #: [hidden]
    qkv: Linear  #: hidden -> (heads + 2 * kv_heads) * head_dim
    qk_norm: Tensor | None  #: [heads + kv_heads, head_dim]: of every query head, then key head
    out: Linear  #: heads * head_dim -> hidden
    mlp_norm: Tensor  #: [hidden]
    gate_up: Linear  #: hidden -> 2 * intermediate
    down: Linear  #: intermediate -> hidden


@dataclass(frozen=True, slots=True)
class ModelWeights:
    embedding: Lookup  #: [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  #: [hidden]
    head: Linear  #: hidden -> vocab

    def linears(self) -> list[Linear]:
        """Everything that rows are multiplied with."""
        layers = self.layers
        return [self.head] + [m for w in layers for m in (w.qkv, w.out, w.gate_up, w.down)]

    @property
    def kind(self) -> str:
        """The kinds of all linears; with dtype and device, all that decides their bits."""
        return "+".join(sorted({linear.kind for linear in self.linears()}))


class Transformer:
    """The forward pass over packed tokens; holds no state between calls."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, rope: RopeTable, rows: Rows
    ) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._rows = rows

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [n, hidden] of packed tokens, before the final norm.

        ``token_ids`` and ``positions`` are int64 [n]. ``attend`` is called once per layer, in
        order, and must see to it that the keys and values it is given are seen by the queries.
        """
        x = self._weights.embedding(token_ids)
        cos, sin = self._rope.at(positions)
        for index, layer in enumerate(self._weights.layers):
            q, k, v = self._rows.map(
                lambda x, cos, sin, layer=layer: self._before(layer, x, cos, sin), x, cos, sin
            )
            mixed = attend(index, q, k, v)
            (x,) = self._rows.map(
                lambda x, mixed, layer=layer: (self._after(layer, x, mixed),), x, mixed
            )
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Logits [n, vocab] of hidden states [n, hidden], in the model's dtype."""
        (logits,) = self._rows.map(
            lambda x: (self._weights.head(self._norm(x, self._weights.norm)),), x
        )
        return logits

    def _before(
        self, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What attention needs of every token: rotated q and k, and v."""
        c = self._config
        qkv = layer.qkv(self._norm(x, layer.attention_norm))
        heads = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
        qk, v = heads[:, : -c.kv_heads], heads[:, -c.kv_heads :]
        if layer.qk_norm is not None:
            qk = self._norm(qk) * layer.qk_norm
        q, k = torch.split(rotate(qk, cos, sin), [c.heads, c.kv_heads], dim=1)
        return q.contiguous(), k.contiguous(), v

    def _after(self, layer: LayerWeights, x: Tensor, mixed: Tensor) -> Tensor:
        """Attention's output projection and the gated MLP, each added to the stream."""
        x = x + layer.out(mixed)
        gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
        return x + layer.down(self._rows.silu(gate) * up)

    def _norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """RMS norm over the last dimension, computed in float32."""
        return F.rms_norm(x, x.shape[-1:], weight, self._config.norm_eps)
