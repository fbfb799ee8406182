"""One decoder-only transformer for all supported families.

A layer is four matrices (``linear.py``), functions of single tokens between them (``ops.py``) and
attention, which the caller supplies. Weights are fused at load: q, k and v are one matrix, so are
gate and up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from model.nets.linear import Linear, Lookup
from model.nets.ops import TokenOps

#: (layer, q [n, heads, head_dim]) -> [n, heads * head_dim]
Attend = Callable[[int, Tensor], Tensor]


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

    def each_linear(self, wrap: Callable[[Linear], Linear]) -> ModelWeights:
        """The same with every linear wrapped."""
        layers = tuple(
            replace(
                w,
                qkv=wrap(w.qkv),
                out=wrap(w.out),
                gate_up=wrap(w.gate_up),
                down=wrap(w.down),
            )
            for w in self.layers
        )
        return replace(self, layers=layers, head=wrap(self.head))

    @property
    def kind(self) -> str:
        """The kinds of all linears; with dtype and device, all that decides their bits."""
        return "+".join(sorted({linear.kind for linear in self.linears()}))


class Transformer:
    """The forward pass over packed tokens; holds no state between calls."""

    def __init__(self, weights: ModelWeights, ops: TokenOps) -> None:
        self._weights = weights
        self._ops = ops
        #: What follows each layer's MLP: the norm before the next attention, or the last one.
        self._next = [w.attention_norm for w in weights.layers[1:]] + [weights.norm]

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """Hidden states [n, hidden] of packed tokens, int64 [n], after the final norm.

        ``ops`` must know the step. ``attend`` is called once per layer, in order, when the layer's
        keys and values are in the cache.
        """
        w, ops = self._weights, self._ops
        x = w.embedding(token_ids)
        y = ops.norm(x, w.layers[0].attention_norm)
        for index, layer in enumerate(w.layers):
            mixed = attend(index, ops.place(index, layer.qkv(y), layer.qk_norm))
            y = ops.add_norm(x, layer.out(mixed), layer.mlp_norm)
            inner = ops.gate(layer.gate_up(y))
            y = ops.add_norm(x, layer.down(inner), self._next[index])
        return y

    def logits(self, y: Tensor) -> Tensor:
        """Logits [n, vocab] of hidden states [n, hidden], in the model's dtype."""
        return self._weights.head(y)
