"""Weights in 8 bits on a CUDA device; activations as they are.

torch's own ``_weight_int8pack_mm`` has a CUDA kernel, too, but a simple one: each thread sums one
output by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cuda.modules import installed
from model.nets.linear import Form

_ROUNDED = 1 << 24  # weights rounded at a time, as float32
_FEW = 64  # rows up to which the weights' bytes, not the arithmetic, take the time
_WIDENED = 1 << 26  # weights widened at a time


class CudaInt8:
    """One scale per output: w = scale * q, with q in -127 .. 127, to the nearest."""

    kind = "int8"
    independent = False
    rows = None  # they were rounded

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        self._values = torch.empty(outputs, inputs, dtype=torch.int8, device=weight.device)
        self._scales = torch.empty(outputs, dtype=weight.dtype, device=weight.device)
        for rows in _slices(outputs, inputs, _ROUNDED):
            part = weight[rows].float()
            # Rounded first: what q makes up for is then the scale that will be used.
            scale = (part.abs().amax(1) / 127).clamp_(min=1e-8).to(weight.dtype)
            self._scales[rows] = scale
            steps = part / scale.float()[:, None]
            self._values[rows] = steps.round_().clamp_(-127, 127).to(torch.int8)
        self._bias = bias
        self.shape = (outputs, inputs)
        self.nbytes = self._values.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= _FEW:
            # Imported here: Triton is part of torch for CUDA only.
            from model.cuda.kernels.int8 import int8_matmul

            return int8_matmul(x, self._values, self._scales, self._bias)
        y = x.new_empty(x.shape[0], self.shape[0])
        for rows in _slices(*self.shape, _WIDENED):
            y[:, rows] = F.linear(x, self._values[rows].to(x.dtype))
        y.mul_(self._scales)
        return y if self._bias is None else y.add_(self._bias)


def _slices(outputs: int, inputs: int, weights: int) -> list[slice]:
    """Cuts of the outputs, of about ``weights`` weights each."""
    step = max(weights // inputs, 1)
    return [slice(first, min(first + step, outputs)) for first in range(0, outputs, step)]


def _refusal(weight: Tensor) -> str | None:
    return None if installed("triton") else "triton is not installed"


CUDA_INT8 = Form("int8", _refusal, CudaInt8)
