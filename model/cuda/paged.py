"""What a step on a CUDA device asks of attention.

Behind it stand FlashInfer (flashinfer_attention.py), torch's own varlen_attn (varlen_attention.py)
and our Triton kernel (kernel_attention.py). All read FP16 q, K and V and sum in FP32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cuda.buffers import StepInputs


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention knows of model and pool."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    windows: tuple[int | None, ...]  #: per layer
    max_positions: int  #: of one sequence
    dtype: torch.dtype  #: of the model, in which results are wanted
    device: torch.device

    @property
    def max_blocks(self) -> int:
        """Blocks of one sequence at most."""
        return -(-self.max_positions // self.block_size)


class PagedAttention(ABC):
    """Not for two threads at once.

    Steps with ``rows`` are captured as a graph: ``prepare`` is called before the capture and again
    before each replay, ``attend`` only while capturing. What it then reads, beyond its arguments,
    must stay where it is.
    """

    name: str  #: tells apart what may differ in a bit

    @abstractmethod
    def prepare(self, step: StepInputs) -> None:
        """Once per step, before its first layer. Enqueues at most; never waits for the device."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, pool: Tensor, step: StepInputs) -> Tensor:
        """Causal attention of q, FP16 [tokens, heads, head_dim], over each sequence's cache.

        ``pool`` is one layer, FP16 [blocks, 2 (K, V), block_size, kv_heads, head_dim], with all
        tokens of the step written. Returns [tokens, heads * head_dim] in the model's dtype.
        """
