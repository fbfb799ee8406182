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
from model.nets.rope import RopeTable, rotate
from model.nets.rows import Rows

#: (layer, q [n, heads, head_dim], k and v [n, kv_heads, head_dim]) -> [n, heads * head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Matrices are [out, in]; all tensors share the model's dtype and device."""

    attention_norm: Tensor  #: [hidden]
    qkv: Tensor  #: [(heads + 2 * kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  #: [head_dim]
    k_norm: Tensor | None
    out: Tensor  #: [hidden, heads * head_dim]
    out_bias: Tensor | None
    mlp_norm: Tensor  #: [hidden]
    gate_up: Tensor  #: [2 * intermediate, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  #: [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    embedding: Tensor  #: [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  #: [hidden]
    head: Tensor  #: [vocab, hidden]; the embedding itself where they are tied

    def matrices(self) -> list[Tensor]:
        """Every matrix that rows are multiplied with."""
        layers = self.layers
        return [self.head] + [m for w in layers for m in (w.qkv, w.out, w.gate_up, w.down)]


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
        x = F.embedding(token_ids, self._weights.embedding)
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
            lambda x: (F.linear(self._norm(x, self._weights.norm), self._weights.head),), x
        )
        return logits

    def _before(
        self, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What attention needs of every token: rotated q and k, and v."""
        c = self._config
        qkv = F.linear(self._norm(x, layer.attention_norm), layer.qkv, layer.qkv_bias)
        heads = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.heads, c.kv_heads, c.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _after(self, layer: LayerWeights, x: Tensor, mixed: Tensor) -> Tensor:
        """Attention's output projection and the gated MLP, each added to the stream."""
        x = x + F.linear(mixed, layer.out, layer.out_bias)
        normed = self._norm(x, layer.mlp_norm)
        gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return x + F.linear(self._rows.silu(gate) * up, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last dimension, in float32 up to the weight (as transformers does)."""
        wide = x.float()
        scale = (wide.pow(2).mean(-1, keepdim=True) + self._config.norm_eps).rsqrt()
        return weight * (wide * scale).to(x.dtype)
