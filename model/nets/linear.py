"""What rows are multiplied with: one matrix in the form that is fastest to read.

A form takes a matrix once, at load, and keeps it as its kernel wants it; whoever made the matrix
can then drop it. ``kernel_linear.py`` has those of our own kernel, ``quantized.py`` torch's that
round the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

#: int64 ids [n] -> the matrix's rows of these numbers [n, in], as they were given.
Lookup = Callable[[Tensor], Tensor]


class Linear(Protocol):
    """A matrix with its bias."""

    @property
    def kind(self) -> str:
        """What changes the bits of a result, in a word or two."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, without the bias."""
        ...

    @property
    def independent(self) -> bool:
        """A row's result is bitwise a function of that row, in calls of any number of rows."""
        ...

    @property
    def rows(self) -> Lookup | None:
        """What an embedding is looked up with; None where the rows were rounded or are lost."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in], contiguous, in the dtype the matrix had -> [n, out] likewise."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """One way to hold a matrix."""

    name: str
    #: Why a matrix [out, in] cannot be held so, None where it can.
    refusal: Callable[[Tensor], str | None]
    #: (matrix [out, in], bias [out]) -> the linear.
    make: Callable[[Tensor, Tensor | None], Linear]
    keeps: bool = False  #: the matrix itself; others copy what they need of it


class Plain:
    """The matrix as it is, on any device."""

    kind = "plain"
    independent = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self.shape = (weight.shape[0], weight.shape[1])
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weight)


#: Rows that oneDNN is told to expect. Seen on AVX-512 (bfloat16 and float32, 1 to 512 rows): 1 is
#: slower for float32, all others are alike.
_EXPECTED_ROWS = 32


class Packed:
    """The matrix in oneDNN's blocked layout, which F.linear would make anew in every call.

    These are the operators that torch's own Inductor freezes linears to.
    """

    kind = "packed"
    independent = False
    rows = None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._bias = bias
        self.shape = (weight.shape[0], weight.shape[1])
        self.nbytes = int(torch.ops.mkldnn._nbytes(self._weight))

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


def _not_packable(weight: Tensor) -> str | None:
    if weight.device.type != "cpu":
        return f"oneDNN packs for a CPU, not for {weight.device.type}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch is built without oneDNN"
    ops = torch.ops.mkldnn
    if (weight.dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported()) or (
        weight.dtype == torch.float16 and not ops._is_mkldnn_fp16_supported()
    ):
        return f"oneDNN has no {weight.dtype} on this CPU"
    return failure(Packed, torch.eye(32, dtype=weight.dtype))


def failure(make: Callable[[Tensor, Tensor | None], Linear], weight: Tensor) -> str | None:
    """Why a product with a small ``weight`` fails, None where it succeeds.

    The operators are torch's, but no public interface: another version may lack or change them.
    """
    try:
        make(weight, None)(weight.new_ones(2, weight.shape[1]))
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        return f"torch {torch.__version__} says: {str(error).splitlines()[0]}"
    return None


PLAIN = Form("plain", lambda weight: None, Plain, keeps=True)
PACKED = Form("packed", _not_packable, Packed)
