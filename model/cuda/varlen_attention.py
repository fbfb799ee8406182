"""Paged attention by ``torch.nn.attention.varlen``, whose block tables came with torch 2.12.

The FlashAttention 2 inside torch has no block tables and says so; ``varlen_attn`` needs
FlashAttention 3 (Hopper; module ``flash_attn_interface``) or 4 (Blackwell; ``flash_attn.cute``)
installed and activated, for the whole process.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from model.cuda.buffers import StepInputs
from model.cuda.modules import installed
from model.cuda.paged import AttentionShape, PagedAttention

#: Compute capability -> (what torch calls the implementation, the module that it imports).
_IMPLEMENTATIONS = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}


def varlen_refusal(shape: AttentionShape) -> str | None:
    """Why varlen_attn cannot be had here, None where it can."""
    if shape.device.type != "cuda":
        return f"varlen_attn is for CUDA, not for {shape.device}"
    if not installed("torch.nn.attention.varlen"):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    from torch.nn.attention.varlen import varlen_attn

    if "block_table" not in inspect.signature(varlen_attn).parameters:
        return f"varlen_attn of torch {torch.__version__} has no block tables"
    major, minor = torch.cuda.get_device_capability(shape.device)
    if major not in _IMPLEMENTATIONS:
        return f"FlashAttention 3 and 4 have no block tables on compute capability {major}.{minor}"
    name, module = _IMPLEMENTATIONS[major]
    if not installed(module):
        return f"{name} is not installed (module {module})"
    if shape.head_dim not in (64, 128):
        return f"a head size of {shape.head_dim} is neither 64 nor 128"
    return None


class VarlenAttention(PagedAttention):
    def __init__(self, shape: AttentionShape) -> None:
        """Activate the implementation. Raises what importing it raises."""
        from torch.nn.attention import activate_flash_attention_impl
        from torch.nn.attention.varlen import varlen_attn

        major, _ = torch.cuda.get_device_capability(shape.device)
        implementation, _ = _IMPLEMENTATIONS[major]
        activate_flash_attention_impl(implementation)
        self.name = f"varlen {implementation}"
        self._shape = shape
        self._varlen_attn = varlen_attn
        self._columns = torch.arange(shape.max_blocks, device=shape.device)
        self._tables: Tensor | None = None

    def prepare(self, step: StepInputs) -> None:
        """Tables are made from the inputs on the device, by the step's first layer."""

    def attend(self, layer: int, q: Tensor, pool: Tensor, step: StepInputs) -> Tensor:
        if layer == 0 or self._tables is None:
            self._tables = self._padded(step)
        inputs, window = step.device, self._shape.windows[layer]
        out = self._varlen_attn(
            q,
            pool[:, 0],
            pool[:, 1],
            inputs.query_starts,
            None,
            step.longest,
            self._tables.shape[1] * self._shape.block_size,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=self._shape.heads != self._shape.kv_heads,
            seqused_k=inputs.ends,
            block_table=self._tables,
        )
        assert isinstance(out, Tensor), "no logsumexp was asked for"
        return out.flatten(1).to(self._shape.dtype)

    def _padded(self, step: StepInputs) -> Tensor:
        """Tables of equal length, int32 [sequences, blocks]; what follows the last block is never
        read. As long as the longest now, or, captured, as any can ever be."""
        width = self._shape.max_blocks
        if step.rows is None:
            width = int(step.host.page_starts.diff().max())
        blocks, starts = step.device.blocks, step.device.page_starts[:-1, None]
        return blocks[(starts + self._columns[:width]).clamp_(max=blocks.shape[0] - 1)]
