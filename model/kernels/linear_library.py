"""``linear.c`` as Python sees it; see its source for the layout of what it is given."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from model.kernels.library import Library


class Weights(IntEnum):
    """``enum weights``."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3


class LinearShape(ctypes.Structure):
    """``struct linear``: what stays the same from call to call."""

    _fields_: ClassVar = [
        (name, c_int64) for name in ("inputs", "outputs", "weights", "type", "pairs")
    ]

    def __init__(
        self, *, inputs: int, outputs: int, weights: Weights, type: int, pairs: bool
    ) -> None:
        """``type``: of rows and results, as ``elements.h`` numbers them. ``pairs``: multiply pairs
        of bfloat16, where the library can."""
        super().__init__(inputs, outputs, weights, type, pairs)


class LinearLibrary(Library):
    source = "linear.c"

    def __init__(self, instructions: str, path: Path) -> None:
        super().__init__(instructions, path)
        library, pointer = self._library, c_void_p
        for name in ("has_pairs", "panel_outputs", "scratch_bytes"):
            getattr(library, name).restype = c_int64
        library.scratch_bytes.argtypes = [POINTER(LinearShape), c_int64]
        library.multiply.restype = None
        library.multiply.argtypes = [
            *(POINTER(LinearShape), pointer, c_int64),  # shape, x, rows
            *(pointer, pointer, pointer, pointer),  # panels, scales, bias, y
            *(c_int64, pointer),  # threads, scratch
        ]
        self.multiply = library.multiply
        self.has_pairs = bool(library.has_pairs())  #: it can multiply pairs of bfloat16
        self.panel_outputs = int(library.panel_outputs())

    def scratch_bytes(self, shape: LinearShape, rows: int) -> int:
        """Memory that each thread needs for so many rows; bounded, however many."""
        return int(self._library.scratch_bytes(byref(shape), rows))
