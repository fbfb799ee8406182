"""Products with weights of 8 bits, widened in registers: half the bytes of bfloat16 to read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _matmul(x, values, scales, bias, y, rows, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
            BIASED: tl.constexpr):  # fmt: skip
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    left = x + row.to(tl.int64)[:, None] * INPUTS + step[None, :]
    right = values + output.to(tl.int64)[:, None] * INPUTS + step[None, :]
    real, known = row < rows, output < OUTPUTS
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, INPUTS, BLOCK_K):
        inside = first + step < INPUTS
        a = tl.load(left + first, mask=real[:, None] & inside[None, :], other=0.0)
        b = tl.load(right + first, mask=known[:, None] & inside[None, :], other=0)
        # -127 .. 127 is exact in every dtype.
        total += tl.dot(a, tl.trans(b.to(a.dtype)), input_precision="ieee")
    total *= tl.load(scales + output, mask=known, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        total += tl.load(bias + output, mask=known, other=0.0).to(tl.float32)[None, :]
    spot = y + row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(spot, total.to(y.dtype.element_ty), mask=real[:, None] & known[None, :])


def int8_matmul(x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, in] times (scales[out] * values, int8 [out, in]), transposed, plus bias [out].

    Sums are float32; the result, [n, out], has x's dtype.
    """
    rows, (outputs, inputs) = x.shape[0], values.shape
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    block_m = min(max(16, triton.next_power_of_2(rows)), 64)
    # Few outputs are cut finer, so that all of a device reads.
    block_n = 16 if outputs <= 4096 else 32 if outputs <= 16384 else 64
    _matmul[(triton.cdiv(outputs, block_n), triton.cdiv(rows, block_m))](
        x,
        values,
        scales,
        scales if bias is None else bias,
        y,
        rows,
        OUTPUTS=outputs,
        INPUTS=inputs,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=256 if block_m == 16 else 128,
        BIASED=bias is not None,
        num_warps=4,
    )
    return y
