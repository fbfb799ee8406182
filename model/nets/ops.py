"""What the net does to one token at a time beside its matrices, in plain torch."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets.config import ModelConfig
from model.nets.rope import RopeTable, rotate
from model.nets.rows import Rows


class WritableCache(Protocol):
    """What of the pool is written here."""

    @property
    def block_size(self) -> int: ...

    def layer(self, index: int) -> Tensor:
        """One layer as it is, FP16 [blocks, 2 (K, V), block_size, kv_heads, head_dim]."""
        ...

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v [n, kv_heads, head_dim] at ``rows`` int64 [2 * n], all K before all V.

        Returns the largest magnitude among each token's K and V, float32 [n].
        """
        ...


class TokenOps(Protocol):
    """Norms, rope, residual sums, the gated activation, and the way into the cache.

    One object serves one step after another; a result is good until the same function is called
    again. All tensors are contiguous, in the model's dtype, a row per token.
    """

    def begin(self, positions: Tensor, rows: Tensor) -> None:
        """The step's tokens: int64 [n] and, where their K and V go in the pool, [2 * n]."""
        ...

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of x [n, hidden], computed in float32, times ``weight`` [hidden]."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """Adds y to x, in place; the norm of that."""
        ...

    def place(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """Norms (where there is a weight) and rotates queries and keys, and writes K and V,
        rounded to FP16, into the pool. Returns the queries [n, heads, head_dim]."""
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """[n, 2 * intermediate] -> silu(first half) * second half."""
        ...

    def peaks(self) -> Tensor:
        """The largest magnitude among K and V of each layer and token before they were rounded
        to FP16, on the host, float32 [layers, n]. NaN where one was NaN."""
        ...


class TorchOps:
    """On any device, in as many calls as torch needs; ``rows`` says how (deterministic mode)."""

    def __init__(
        self, config: ModelConfig, rope: RopeTable, cache: WritableCache, rows: Rows
    ) -> None:
        self._config = config
        self._rope = rope
        self._cache = cache
        self._rows = rows
        self._peaks: list[Tensor] = []

    def begin(self, positions: Tensor, rows: Tensor) -> None:
        self._angles = self._rope.at(positions)
        self._places = rows
        self._peaks = []

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        (normed,) = self._rows.map(lambda x: (self._norm(x, weight),), x)
        return normed

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return self.norm(x.add_(y), weight)

    def place(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        q, k, v = self._rows.map(
            lambda qkv, cos, sin: self._heads(qkv, qk_norm, cos, sin), qkv, *self._angles
        )
        self._peaks.append(self._cache.write(layer, self._places, k, v))
        return q

    def gate(self, gate_up: Tensor) -> Tensor:
        (gated,) = self._rows.map(lambda gate_up: (self._gate(gate_up),), gate_up)
        return gated

    def peaks(self) -> Tensor:
        return torch.stack(self._peaks).cpu()

    def _heads(
        self, qkv: Tensor, qk_norm: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = self._config
        heads = qkv.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
        qk, v = heads[:, : -c.kv_heads], heads[:, -c.kv_heads :]
        if qk_norm is not None:
            qk = self._norm(qk) * qk_norm
        q, k = torch.split(rotate(qk, cos, sin), [c.heads, c.kv_heads], dim=1)
        return q.contiguous(), k, v

    def _gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self._rows.silu(gate) * up

    def _norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self._config.norm_eps)
