"""Paged attention by our Triton kernel: needs nothing but the Triton that comes with torch."""

from __future__ import annotations

import torch
from torch import Tensor

from model.cuda.buckets import splits_for
from model.cuda.buffers import StepInputs
from model.cuda.kernels.attention import paged_attention
from model.cuda.paged import AttentionShape, PagedAttention


class TritonAttention(PagedAttention):
    name = "triton"

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self._processors = 1
        if shape.device.type == "cuda":
            properties = torch.cuda.get_device_properties(shape.device)
            self._processors = properties.multi_processor_count

    def prepare(self, step: StepInputs) -> None:
        """All is read from the step's inputs by the kernel itself."""

    def attend(self, layer: int, q: Tensor, pool: Tensor, step: StepInputs) -> Tensor:
        shape, inputs = self._shape, step.device
        # Sized by the number of sequences alone: a captured step keeps it for every context.
        programs = step.sequences * shape.kv_heads
        splits = splits_for(programs, self._processors) if step.longest == 1 else 1
        out = paged_attention(
            q,
            pool,
            inputs.query_starts,
            inputs.ends,
            inputs.page_starts,
            inputs.blocks,
            longest=step.longest,
            window=shape.windows[layer],
            splits=splits,
            dtype=shape.dtype,
        )
        return out.flatten(1)
