"""Our C as Python sees it, by ctypes: plain pointers, the interpreter lock free.

A C file has one class here. It is built against no torch, so it goes with any. Its threads are
those of torch's own OpenMP runtime, found in the process: two runtimes would fight for the cores.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int64, c_void_p
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, TypeVar

import torch  # noqa: F401 - brings the OpenMP runtime into the process

from model.kernels.build import InstructionSet, KernelUnavailable, build


class Library:
    """One build of ``source``, a C file beside this one."""

    source: ClassVar[str]

    def __init__(self, instructions: str, path: Path) -> None:
        """Raises OSError when the library cannot be loaded."""
        self._library = ctypes.CDLL(str(path))
        self.instructions = instructions
        #: Equal for equal machine code.
        self.digest = blake2b(path.read_bytes(), digest_size=4).hexdigest()


AnyLibrary = TypeVar("AnyLibrary", bound=Library)


def load_library(kind: type[AnyLibrary], target: InstructionSet, cache: Path) -> AnyLibrary:
    """Build what is not there yet. With threads, or without where torch brings no runtime that
    the compiler's OpenMP fits. Raises KernelUnavailable."""
    source = Path(__file__).with_name(kind.source)
    try:
        return kind(target.name, build(source, target, cache, openmp=True))
    except (KernelUnavailable, OSError):
        path = build(source, target, cache, openmp=False)
    try:
        return kind(f"{target.name}, one thread", path)
    except OSError as error:
        raise KernelUnavailable(f"{path} cannot be loaded: {error}") from error


class Shape(ctypes.Structure):
    """``struct shape``: what stays the same from call to call."""

    _fields_: ClassVar = [
        *(("heads", c_int64), ("kv_heads", c_int64), ("head_dim", c_int64)),
        *(("block_size", c_int64), ("bf16", c_int64), ("pairs", c_int64)),
    ]

    def __init__(
        self, *, heads: int, kv_heads: int, head_dim: int, block_size: int, bf16: bool, pairs: bool
    ) -> None:
        """``bf16``: q and the result are bfloat16, else float32. ``pairs``: multiply pairs of
        bfloat16, where the library can."""
        super().__init__(heads, kv_heads, head_dim, block_size, bf16, pairs)


class PagedAttentionLibrary(Library):
    """See the C source for the layout of what its functions are given."""

    source = "paged_attention.c"

    def __init__(self, instructions: str, path: Path) -> None:
        super().__init__(instructions, path)
        library = self._library
        for name in ("has_pairs", "queries_at_once", "scratch_bytes"):
            getattr(library, name).restype = c_int64
        library.queries_at_once.argtypes = library.scratch_bytes.argtypes = [POINTER(Shape)]
        pointer = c_void_p
        library.paged_attention.restype = None
        library.paged_attention.argtypes = [
            *(POINTER(Shape), pointer, pointer, pointer),  # shape, q, out, pool
            *(pointer, c_int64, pointer),  # spans, how many, tables
            *(c_int64, c_int64, pointer),  # window, threads, scratch
        ]
        self.attend = library.paged_attention
        self.has_pairs = bool(library.has_pairs())  #: it can multiply pairs of bfloat16

    def queries_at_once(self, shape: Shape) -> int:
        """Queries of one span that are one item of work, of one KV head. A span that has this
        many over all its KV heads, or fewer, may be one item in all."""
        return int(self._library.queries_at_once(byref(shape)))

    def scratch_bytes(self, shape: Shape) -> int:
        """Memory that each thread needs."""
        return int(self._library.scratch_bytes(byref(shape)))


class Step(ctypes.Structure):
    """``struct step``: what stays the same through one step; addresses as integers."""

    _fields_: ClassVar = [
        *(("type", c_int64), ("hidden", c_int64), ("inner", c_int64), ("heads", c_int64)),
        *(("kv_heads", c_int64), ("head_dim", c_int64), ("block_size", c_int64)),
        *(("eps", c_double), ("cos", c_void_p), ("sin", c_void_p)),
        *(("tokens", c_int64), ("threads", c_int64), ("positions", c_void_p), ("rows", c_void_p)),
    ]


class TokenOpsLibrary(Library):
    """See the C source for the layout of what its functions are given."""

    source = "token_ops.c"

    def __init__(self, instructions: str, path: Path) -> None:
        super().__init__(instructions, path)
        step, pointer = POINTER(Step), c_void_p
        for name, arguments in (
            ("add_norm", [step, pointer, pointer, pointer, pointer]),  # x, y, weight, out
            ("gate", [step, pointer, pointer]),  # gate_up, out
            ("place", [step, *[pointer] * 5]),  # qkv, weights, pool, q, peaks
        ):
            function = getattr(self._library, name)
            function.restype = None
            function.argtypes = arguments
        self.add_norm = self._library.add_norm
        self.gate = self._library.gate
        self.place = self._library.place
