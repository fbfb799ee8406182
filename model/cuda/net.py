"""The transformer of ``model.nets.transformer`` with one kernel between any two matrix products.

The same function up to rounding; only the number of kernels differs: ten a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache.pool import KvPool
from model.cuda.buffers import StepInputs
from model.cuda.kernels.layers import add_norm, rotate_and_store, silu_mul
from model.cuda.paged import PagedAttention
from model.nets.config import ModelConfig
from model.nets.rope import frequencies
from model.nets.transformer import ModelWeights


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a step leaves behind, on the device."""

    stream: Tensor  #: [n, hidden]
    delta: Tensor  #: [n, hidden], to be added to it: the last layer's MLP
    peaks: Tensor  #: float32 [layers, n]: the largest magnitude among each token's K and V


class CudaNet:
    """Holds no state between calls but tables of angles."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        pool: KvPool,
        attention: PagedAttention,
        max_positions: int,
    ) -> None:
        self._config = config
        self._weights = weights
        self._pool = pool
        self._attention = attention
        positions = torch.arange(max_positions, dtype=torch.float32)
        angles = torch.outer(positions, frequencies(config.rope, config.head_dim))
        device = weights.norm.device
        self._cos, self._sin = angles.cos().to(device), angles.sin().to(device)

    def forward(self, step: StepInputs, written: Callable[[int], None]) -> Hidden:
        """Compute a step that attention is prepared for.

        ``written`` is called with each layer's index when its K and V are enqueued.
        """
        config, inputs = self._config, step.device
        device = self._weights.norm.device
        shape = (config.layers, step.tokens, config.kv_heads)
        peaks = torch.empty(shape, dtype=torch.float32, device=device)
        x = self._weights.embedding(inputs.token_ids)
        delta: Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            pool = self._pool.layer(index)
            x, normed = add_norm(x, delta, layer.attention_norm, config.norm_eps)
            q = rotate_and_store(
                layer.qkv(normed),
                layer.qk_norm,
                self._cos,
                self._sin,
                inputs.positions,
                inputs.keys,
                pool,
                peaks[index],
                heads=config.heads,
                eps=config.norm_eps,
            )
            written(index)
            mixed = self._attention.attend(index, q, pool, step)
            x, normed = add_norm(x, layer.out(mixed), layer.mlp_norm, config.norm_eps)
            delta = layer.down(silu_mul(layer.gate_up(normed)))
        assert delta is not None, "a model has layers"
        return Hidden(x, delta, peaks.amax(-1))

    def logits(self, hidden: Hidden, rows: Tensor | None = None) -> Tensor:
        """Logits [n, vocab] in the model's dtype; with ``rows``, integers, only of those."""
        x, delta = hidden.stream, hidden.delta
        if rows is not None:
            x, delta = x[rows], delta[rows]
        _, normed = add_norm(x, delta, self._weights.norm, self._config.norm_eps)
        return self._weights.head(normed)
