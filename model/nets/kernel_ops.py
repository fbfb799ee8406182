"""What the net does to one token at a time by our C: one call each, into memory that is reused."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from model.kernels.library import Step, TokenOpsLibrary
from model.nets.config import ModelConfig
from model.nets.ops import WritableCache
from model.nets.rope import RopeTable

#: As ``elements.h`` numbers them.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PER_THREAD = 1 << 16  # elements of a step's rows; below, waking a thread costs more than it brings


class KernelOps:
    """See ``TokenOps``. A row's result is bitwise a function of that row, as the C source says.

    Not for two threads at once.
    """

    def __init__(
        self,
        library: TokenOpsLibrary,
        config: ModelConfig,
        rope: RopeTable,
        cache: WritableCache,
        *,
        dtype: torch.dtype,
        threads: int,
    ) -> None:
        self._library = library
        self._config = config
        self._rope, self._cache = rope, cache  # kept: the C reads and writes them
        self._dtype = dtype
        self._threads = threads
        layers = [cache.layer(index) for index in range(config.layers)]
        self._pools = [layer.data_ptr() for layer in layers]
        self._pool_rows = layers[0].shape[0] * 2 * cache.block_size
        self._values = cache.block_size  # rows from a token's K to its V
        self._step = Step(
            type=_TYPES[dtype],
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            block_size=cache.block_size,
            eps=config.norm_eps,
            cos=rope.cos.data_ptr(),
            sin=rope.sin.data_ptr(),
        )
        self._at = byref(self._step)
        self._make_room(0)

    def begin(self, positions: Tensor, rows: Tensor) -> None:
        """See ``TokenOps``. Raises IndexError for a position or a row that is not there."""
        count, step = len(positions), self._step
        _require_within("position", positions, self._rope.length)
        _require_within("row of the pool", rows, self._pool_rows)
        if count != step.tokens:
            self._make_room(count)
        self._given = positions, rows  # kept, too
        step.positions, step.rows = positions.data_ptr(), rows.data_ptr()

    def _make_room(self, count: int) -> None:
        c, step = self._config, self._step
        step.tokens = count
        step.threads = max(1, min(self._threads, count * c.hidden_size // _PER_THREAD))
        self._normed = torch.empty(count, c.hidden_size, dtype=self._dtype)
        self._q = torch.empty(count, c.heads, c.head_dim, dtype=self._dtype)
        self._gated = torch.empty(count, c.intermediate_size, dtype=self._dtype)
        self._peaks = torch.empty(c.layers, count)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        y = self._normed
        self._library.add_norm(self._at, x.data_ptr(), None, weight.data_ptr(), y.data_ptr())
        return y

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        normed = self._normed
        self._library.add_norm(
            self._at, x.data_ptr(), y.data_ptr(), weight.data_ptr(), normed.data_ptr()
        )
        return normed

    def place(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        self._library.place(
            self._at,
            qkv.data_ptr(),
            None if qk_norm is None else qk_norm.data_ptr(),
            self._pools[layer],
            self._q.data_ptr(),
            self._peaks.data_ptr() + layer * 4 * self._step.tokens,
        )
        return self._q

    def gate(self, gate_up: Tensor) -> Tensor:
        self._library.gate(self._at, gate_up.data_ptr(), self._gated.data_ptr())
        return self._gated

    def peaks(self) -> Tensor:
        return self._peaks


def _require_within(what: str, values: Tensor, limit: int) -> None:
    """Memory is written there: raise IndexError for one that is not in 0 .. limit - 1."""
    found = values.numpy()
    if len(found) and (found.min() < 0 or found.max() >= limit):
        bad = found[(found < 0) | (found >= limit)][0]
        raise IndexError(f"{what} {bad} is outside 0 .. {limit - 1}")
