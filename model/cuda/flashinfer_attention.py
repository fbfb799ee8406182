"""Paged attention by FlashInfer, where it is installed (the extra ``flashinfer``).

Its paged layout NHD, [pages, 2, page_size, kv_heads, head_dim], is the pool's. It plans every step
on the host from the lengths: never inside a graph, and again before each replay, when the plan's
size must be as captured; its wrappers for graphs see to that. A plan is for one window size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.cuda.buffers import StepInputs
from model.cuda.modules import installed
from model.cuda.paged import AttentionShape, PagedAttention

_HEAD_SIZES = (64, 128, 256)
_WORKSPACE_BYTES = 128 * 2**20  # as its documentation recommends


def flashinfer_refusal(shape: AttentionShape) -> str | None:
    """Why FlashInfer cannot be had here, None where it can."""
    if shape.device.type != "cuda":
        return f"flashinfer is for CUDA, not for {shape.device}"
    if not installed("flashinfer"):
        return "flashinfer is not installed"
    if shape.head_dim not in _HEAD_SIZES:
        return f"flashinfer has no kernel for a head size of {shape.head_dim}"
    return None


class FlashInferAttention(PagedAttention):
    def __init__(self, shape: AttentionShape) -> None:
        import flashinfer

        self.name = f"flashinfer {flashinfer.__version__}"
        self._flashinfer: Any = flashinfer
        self._shape = shape
        # Zeros for the first use, as it demands. One for all wrappers: they take turns.
        self._workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=shape.device)
        #: (rows, window) -> wrapper; rows None are of steps that are not captured.
        self._wrappers: dict[tuple[int | None, int | None], Any] = {}

    def prepare(self, step: StepInputs) -> None:
        for window in dict.fromkeys(self._shape.windows):
            wrapper = self._wrappers.get((step.rows, window))
            if wrapper is None:
                wrapper = self._wrappers[step.rows, window] = self._make(step.rows)
            self._plan(wrapper, step, window)

    def attend(self, layer: int, q: Tensor, pool: Tensor, step: StepInputs) -> Tensor:
        wrapper = self._wrappers[step.rows, self._shape.windows[layer]]
        out: Tensor = wrapper.run(q, pool)
        return out.flatten(1).to(self._shape.dtype)

    def _make(self, rows: int | None) -> Any:
        if rows is None:
            return self._flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self._workspace, "NHD", backend="fa2"
            )

        def integers(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self._shape.device)

        # On tensor cores: the heads of a group are rows of one product.
        return self._flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=integers(rows + 1),
            paged_kv_indices_buffer=integers(rows * self._shape.max_blocks),
            paged_kv_last_page_len_buffer=integers(rows),
            backend="fa2",
        )

    def _plan(self, wrapper: Any, step: StepInputs, window: int | None) -> None:
        """Lengths from the host, which it plans with; blocks from the device, where they go."""
        shape, host = self._shape, step.host
        blocks = step.device.blocks[: int(host.page_starts[-1])]
        paged = (host.page_starts, blocks, host.last)
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, shape.block_size)
        options = {
            "window_left": -1 if window is None else window - 1,
            "q_data_type": torch.float16,
            "kv_data_type": torch.float16,
        }
        if step.rows is None:
            wrapper.plan(host.query_starts, *paged, *sizes, causal=True, **options)
        else:
            wrapper.plan(*paged, *sizes, **options)
