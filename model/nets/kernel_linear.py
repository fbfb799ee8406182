"""Linears by our C kernel: weights as they are, or in 8 or 4 bits, packed once, at load.

A row's result is bitwise a function of that row (see the source), so they serve under
``--deterministic`` as they are.
"""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.build import cpu_flags
from model.kernels.linear_library import LinearLibrary, LinearShape, Weights
from model.nets.linear import Form, Lookup
from model.nets.quantized import GROUP, ROUNDED, slices, to_int4, to_int8

#: As ``elements.h`` numbers them.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Multiplications from which on all threads take part, below it one: waking them has a price, and
#: libgomp ends those that a smaller team leaves out, to start them anew later.
_SHARED = 1 << 19
_MANY_ROWS = 1 << 20  # more than any step has


@dataclass(frozen=True, slots=True)
class _Packed:
    """A matrix as the kernel reads it; everything filled up to whole panels with zeros."""

    weights: Weights
    panels: Tensor
    scales: Tensor | None = None  #: float32 [out]
    rows: Lookup | None = None


class LinearKernel:
    """A build of the kernel and memory for its threads, which all linears of a net share.

    Not for two threads at once.
    """

    def __init__(self, library: LinearLibrary, threads: int) -> None:
        self.library = library
        self.threads = threads
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def forms(self) -> dict[str, Form]:
        """By name."""
        forms = (
            Form("kernel", self._not_as_it_is, self._as_it_is),
            Form("int8", _not_rounded, self._int8),
            Form("int4", _not_int4, self._int4),
        )
        return {form.name: form for form in forms}

    def reserve(self, shape: LinearShape) -> None:
        """Have scratch for any number of rows of a linear."""
        needed = self.threads * self.library.scratch_bytes(shape, _MANY_ROWS)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)  # torch aligns to 64 bytes

    def scratch(self) -> int:
        """Where it is; it moves when more is reserved."""
        return self._scratch.data_ptr()

    def _pairs(self, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16 and self.library.has_pairs

    def _not_as_it_is(self, weight: Tensor) -> str | None:
        if weight.dtype == torch.bfloat16 and "amx_bf16" in cpu_flags():
            return "oneDNN multiplies by AMX here"
        if weight.dtype not in (torch.bfloat16, torch.float32):
            return f"the kernel has no {weight.dtype} weights"
        return None

    def _as_it_is(self, weight: Tensor, bias: Tensor | None) -> KernelLinear:
        outputs, inputs = weight.shape
        width, steps = self.library.panel_outputs, -(-inputs // 2)
        count, dtype = -(-outputs // width), weight.dtype
        if dtype == torch.bfloat16:
            kind, panels = Weights.BFLOAT16, torch.empty(count, steps, width, dtype=torch.int32)
            by_step = panels
        else:  # a step has its two inputs one after the other, not side by side
            kind, panels = Weights.FLOAT32, torch.empty(count, steps, 2, width)
            by_step = panels.transpose(2, 3)
        for part in slices(outputs, inputs, ROUNDED):
            cut = self._by_panel(_paired(weight[part]))
            if kind is Weights.FLOAT32:
                cut = cut.contiguous().view(torch.float32).view(*cut.shape, 2)
            by_step[self._panels(part)] = cut

        def rows(ids: Tensor) -> Tensor:
            found = by_step[ids // width, :, ids % width]
            return found.view(dtype).flatten(1)[:, :inputs].contiguous()

        return KernelLinear(self, _Packed(kind, panels, rows=rows), weight, bias)

    def _int8(self, weight: Tensor, bias: Tensor | None) -> KernelLinear:
        outputs, inputs = weight.shape
        width, steps = self.library.panel_outputs, -(-inputs // 2)
        panels = torch.empty(-(-outputs // width), steps, width, dtype=torch.int16)
        scales = torch.zeros(len(panels) * width)
        for part in slices(outputs, inputs, ROUNDED):
            q, scales[part] = to_int8(weight[part], torch.float32)
            if self._pairs(weight.dtype):
                sign_and_magnitude = torch.where(q < 0, -q | -128, q)
                cut = self._by_panel(_paired(sign_and_magnitude))
                cut = cut.contiguous().view(-1, steps, 2, 4, 4).transpose(2, 3).flatten(2)
            else:
                cut = self._by_panel(_paired(q))
            panels[self._panels(part)] = cut
        return KernelLinear(self, _Packed(Weights.INT8, panels, scales), weight, bias)

    def _int4(self, weight: Tensor, bias: Tensor | None) -> KernelLinear:
        outputs, inputs = weight.shape
        width, groups = self.library.panel_outputs, inputs // GROUP
        count, steps = -(-outputs // width), GROUP // 2
        panels = torch.empty(count, groups, (4 + steps) * width, dtype=torch.uint8)
        for part in slices(outputs, inputs, ROUNDED):
            q, scales = to_int4(weight[part], torch.bfloat16)
            where = panels[self._panels(part)]
            # A scale and its zero are 4 bytes.
            cut = self._by_panel(scales.view(torch.int32).view(-1, groups)).contiguous()
            where[:, :, : 4 * width] = cut.view(torch.uint8)
            cut = self._by_panel(q[:, ::2] | q[:, 1::2] << 4)
            where[:, :, 4 * width :] = cut.reshape(-1, groups, steps * width)
        return KernelLinear(self, _Packed(Weights.INT4, panels), weight, bias)

    def _panels(self, outputs: slice) -> slice:
        width = self.library.panel_outputs
        return slice(outputs.start // width, -(-outputs.stop // width))

    def _by_panel(self, units: Tensor) -> Tensor:
        """[out, steps] -> [panel, steps, output], filled up with zeros."""
        missing = -len(units) % self.library.panel_outputs
        if missing:
            units = F.pad(units, (0, 0, 0, missing))
        return units.view(-1, self.library.panel_outputs, units.shape[1]).transpose(1, 2)


def _paired(matrix: Tensor) -> Tensor:
    """[out, in] -> [out, steps]: two inputs as one integer, filled up with zeros."""
    if matrix.shape[1] % 2:
        matrix = F.pad(matrix, (0, 1))
    return matrix.view({1: torch.int16, 2: torch.int32, 4: torch.int64}[matrix.itemsize])


class KernelLinear:
    """See ``Linear``."""

    independent = True

    def __init__(
        self, kernel: LinearKernel, packed: _Packed, weight: Tensor, bias: Tensor | None
    ) -> None:
        """``weight`` tells shape and dtype."""
        library, dtype = kernel.library, weight.dtype
        outputs, inputs = weight.shape
        self._kernel = kernel
        self._packed = packed
        self._dtype = dtype
        self._bias: Tensor | None = None
        if bias is not None:
            self._bias = F.pad(bias.float(), (0, -outputs % library.panel_outputs))
        self._shape = LinearShape(
            inputs=inputs,
            outputs=outputs,
            weights=packed.weights,
            type=_TYPES[dtype],
            pairs=dtype == torch.bfloat16 and library.has_pairs,
        )
        kernel.reserve(self._shape)
        #: What each call gives the kernel, in its order.
        self._at = byref(self._shape)
        self._matrix = tuple(
            None if tensor is None else tensor.data_ptr()
            for tensor in (packed.panels, packed.scales, self._bias)
        )
        name = packed.weights.name.lower()
        self.kind = f"{name} by kernel {library.instructions} {library.digest}"
        self.shape = (outputs, inputs)
        scales = 0 if packed.scales is None else packed.scales.nbytes
        self.nbytes = packed.panels.nbytes + scales
        self.rows = packed.rows

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``. Raises ValueError for rows of another shape, dtype or layout."""
        outputs, inputs = self.shape
        if x.shape[1:] != (inputs,) or x.dtype != self._dtype or not x.is_contiguous():
            raise ValueError(
                f"rows {list(x.shape)} of {x.dtype} are not contiguous [n, {inputs}] of "
                f"{self._dtype}"
            )
        rows, kernel = x.shape[0], self._kernel
        y = x.new_empty(rows, outputs)
        if rows:
            threads = kernel.threads if rows * outputs * inputs >= _SHARED else 1
            kernel.library.multiply(
                self._at,
                x.data_ptr(),
                rows,
                *self._matrix,
                y.data_ptr(),
                threads,
                kernel.scratch(),
            )
        return y


def _not_rounded(weight: Tensor) -> str | None:
    return None if weight.dtype in _TYPES else f"the kernel has no {weight.dtype} rows"


def _not_int4(weight: Tensor) -> str | None:
    inputs = weight.shape[1]
    if inputs % GROUP:
        return f"{inputs} inputs are no multiple of the {GROUP} that share a scale"
    return _not_rounded(weight)
