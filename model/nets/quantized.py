"""Weights in 8 or 4 bits: half or a quarter of the bytes to read, activations as they are.

Rounded at load from the checkpoint's own weights, to the nearest step (no calibration). ``Int8``
and ``Int4`` are for a CPU without our kernel (``kernel_linear.py``): with few rows torch's kernels
multiply with the small integers directly; with many, where arithmetic and not memory is the limit,
a slice at a time is widened to the activations' dtype.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets.linear import Form, failure

GROUP = 32  #: inputs of an output that share a scale, in 4 bits
ROUNDED = 1 << 16  #: weights rounded at a time, as float32
_WIDENED = 1 << 21  # weights widened at a time: they stay in the cache until they are used


def to_int8(weight: Tensor, scales: torch.dtype) -> tuple[Tensor, Tensor]:
    """One scale per output: w = scale * q, with q in -127 .. 127.

    Returns q, int8 as ``weight`` [out, in], and the scales [out] in their dtype.
    """
    wide = weight.float()
    # Rounded first: what q makes up for is then the scale that will be used.
    scale = (wide.abs().amax(1) / 127).clamp_(min=1e-8).to(scales)
    steps = wide / scale.float()[:, None]
    return steps.round_().clamp_(-127, 127).to(torch.int8), scale


def to_int4(weight: Tensor, scales: torch.dtype) -> tuple[Tensor, Tensor]:
    """A scale and a zero per output and group of inputs: w = scale * (q - 8) + zero, q 0 .. 15.

    Returns q, uint8 as ``weight`` [out, in], and scales and zeros [out, in / GROUP, 2].
    """
    wide = weight.float().view(len(weight), -1, GROUP)
    low, high = wide.amin(-1), wide.amax(-1)
    scale = ((high - low) / 15).clamp_(min=1e-8).to(scales)
    zero = (low + 8 * scale.float()).to(scales)
    steps = (wide - zero.float()[..., None]) / scale.float()[..., None]
    q = (steps.round_() + 8).clamp_(0, 15).to(torch.uint8).flatten(1)
    return q, torch.stack((scale, zero), -1)


class Int8:
    """See ``to_int8``; the scales in the dtype of the weights."""

    kind = "int8"
    independent = False
    rows = None
    few = 16  #: rows at most for torch's kernel; measured, see LOG.md

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        self._values = torch.empty(outputs, inputs, dtype=torch.int8, device=weight.device)
        self._scales = torch.empty(outputs, dtype=weight.dtype, device=weight.device)
        for rows in slices(outputs, inputs, ROUNDED):
            self._values[rows], self._scales[rows] = to_int8(weight[rows], weight.dtype)
        self._bias = bias
        self.shape = (outputs, inputs)
        self.nbytes = self._values.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        few = x.shape[0] <= self.few
        y = torch._weight_int8pack_mm(x, self._values, self._scales) if few else self._widened(x)
        return y if self._bias is None else y.add_(self._bias)

    def _widened(self, x: Tensor) -> Tensor:
        """Products with q, which every dtype holds exactly, and then the scales."""
        y = x.new_empty(x.shape[0], self.shape[0])
        for rows in slices(*self.shape, _WIDENED):
            y[:, rows] = F.linear(x, self._values[rows].to(x.dtype))
        return y.mul_(self._scales)


class Int4:
    """See ``to_int4``; 0.625 bytes a weight with scales of two bytes."""

    kind = "int4"
    independent = False
    rows = None
    few = 64  #: as in Int8

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        groups = inputs // GROUP
        #: [in / group, out, 2]: scale, zero
        self._scales = weight.new_empty(groups, outputs, 2)
        self._values = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
        for rows in slices(outputs, inputs, ROUNDED):
            q, scales = to_int4(weight[rows], weight.dtype)
            self._scales[:, rows] = scales.transpose(0, 1)
            self._values[rows] = torch._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        self._bias = bias
        self.shape = (outputs, inputs)
        self.nbytes = self._values.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        few = x.shape[0] <= self.few or self.shape[0] % _BLOCK or not _layout_is_known()
        y = self._direct(x) if few else self._widened(x)
        return y if self._bias is None else y.add_(self._bias)

    def _direct(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self._values, GROUP, self._scales)

    def _widened(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.shape[0])
        inputs = self.shape[1]
        for rows in slices(*self.shape, _WIDENED):
            steps = _unpack(self._values[rows]).view(-1, inputs // GROUP, GROUP, _BLOCK)
            # [in / group, out, 2] -> 2 of [out / block, in / group, 1, block]
            by_block = self._scales[:, rows].view(inputs // GROUP, -1, 1, _BLOCK, 2).transpose(0, 1)
            scale, zero = (part.contiguous() for part in by_block.unbind(-1))
            wide = torch.addcmul(zero, steps.to(x.dtype), scale)
            # [out / block, in, block] -> [in, out]
            matrix = wide.view(-1, inputs, _BLOCK).transpose(0, 1).reshape(inputs, -1)
            y[:, rows] = x @ matrix
        return y


_VECTOR = 16  # inputs that torch's int8 kernel reads at once
_BLOCK = 64  # outputs that torch packs together where it has AVX-512


def _unpack(packed: Tensor) -> Tensor:
    """Undo torch's packing: uint8 [out, in / 2] -> q - 8, int8 [out / 64, in, 64].

    For every 64 outputs and each input there are 32 bytes, outputs 0 .. 31 in the low nibbles and
    32 .. 63 in the high ones (aten/src/ATen/native/cpu/int4mm_kernel.cpp).
    """
    blocks = packed.view(packed.shape[0] // _BLOCK, -1, _BLOCK // 2)
    return torch.cat((blocks & 15, blocks >> 4), -1).view(torch.int8).sub_(8)


@functools.cache
def _layout_is_known() -> bool:
    """Whether torch packs on this CPU as ``_unpack`` believes."""
    values = torch.arange(2 * _BLOCK * 64, dtype=torch.int32).view(2 * _BLOCK, 64) * 7 % 16
    packed = torch._convert_weight_to_int4pack_for_cpu(values, 1)
    return torch.equal(_unpack(packed).transpose(1, 2).flatten(0, 1) + 8, values.to(torch.int8))


def slices(outputs: int, inputs: int, weights: int) -> list[slice]:
    """Cuts of the outputs, a multiple of 64 each, of about ``weights`` weights."""
    step = max(weights // inputs // _BLOCK, 1) * _BLOCK
    return [slice(first, min(first + step, outputs)) for first in range(0, outputs, step)]


def _not_int8(weight: Tensor) -> str | None:
    if weight.device.type != "cpu":
        return f"int8 weights are implemented for a CPU, not for {weight.device.type}"
    inputs = weight.shape[1]
    if inputs % _VECTOR:  # seen: in bfloat16 torch reads beyond the end, unchecked
        return f"{inputs} inputs are no multiple of the {_VECTOR} that torch reads at once"
    return failure(Int8, weight.new_ones(16, inputs))


def _not_int4(weight: Tensor) -> str | None:
    if weight.device.type != "cpu":
        return f"int4 weights are implemented for a CPU, not for {weight.device.type}"
    outputs, inputs = weight.shape
    if inputs % GROUP:
        return f"{inputs} inputs are no multiple of the {GROUP} that share a scale"
    if outputs % 16:
        return f"{outputs} outputs are no multiple of the 16 that torch packs together"
    return failure(Int4, weight.new_ones(64, inputs))


INT8 = Form("int8", _not_int8, Int8)
INT4 = Form("int4", _not_int4, Int4)
