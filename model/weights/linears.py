"""Which form each matrix of a model is held in, decided while it is read."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from baton.settings import Quantize
from model.cuda.int8 import CUDA_INT8
from model.kernels.build import PORTABLE, KernelUnavailable, default_cache, supported
from model.kernels.library import load_library
from model.kernels.linear_library import LinearLibrary
from model.nets.kernel_linear import LinearKernel
from model.nets.linear import PACKED, PLAIN, Form, Linear
from model.nets.quantized import INT4, INT8
from model.nets.rows import is_row_independent

log = structlog.get_logger(__name__)

_BY_TORCH: dict[Quantize | None, tuple[Form, ...]] = {
    None: (),
    "int8": (INT8,),
    "int4": (INT4, INT8),
}
_BY_KERNEL: dict[Quantize | None, tuple[str, ...]] = {
    None: ("kernel",),
    "int8": ("int8", "kernel"),
    "int4": ("int4", "int8", "kernel"),
}


def forms(quantize: Quantize | None, device: torch.device) -> tuple[Form, ...]:
    """The forms to try, best first: by our kernel where it can be had, and is faster than torch.

    Raises ValueError where a device has none that is asked for.
    """
    if device.type != "cpu":
        if quantize == "int4":
            raise ValueError(f"--quantize {quantize} is implemented for cpu, not for {device}")
        return (CUDA_INT8, PLAIN) if quantize == "int8" else (PLAIN,)
    try:
        by_name = LinearKernel(_library(), torch.get_num_threads()).forms()
    except KernelUnavailable as error:
        log.warning("linears by torch", reason=str(error))
        return (*_BY_TORCH[quantize], PACKED, PLAIN)
    return (*(by_name[name] for name in _BY_KERNEL[quantize]), PACKED, PLAIN)


def _library() -> LinearLibrary:
    """The best build for this CPU. Raises KernelUnavailable."""
    target = supported()[0]
    if target is PORTABLE:
        raise KernelUnavailable("this CPU has no AVX2")
    return load_library(LinearLibrary, target, default_cache())


class LinearMaker:
    """Makes a Linear of every matrix, in the first of ``forms`` that can hold it.

    With ``deterministic`` its products must also be the same bits at every row of a tile. Each
    reason for which a form is passed over is logged once.
    """

    def __init__(self, forms: Sequence[Form], *, deterministic: bool) -> None:
        self._forms = forms
        self._deterministic = deterministic
        self._logged: set[tuple[str, str]] = set()

    def __call__(self, weight: Tensor, bias: Tensor | None, *, keep: bool) -> Linear:
        """A Linear of ``weight`` [out, in]; with ``keep`` it may hold the tensor itself.

        Raises ValueError where no form can.
        """
        for form in self._forms:
            reason = form.refusal(weight)
            if reason is None:
                kept = weight.clone() if form.keeps and not keep else weight
                linear = form.make(kept, bias)
                if not self._deterministic or is_row_independent(
                    linear, weight.dtype, weight.device
                ):
                    return linear
                reason = (
                    f"deterministic mode is not possible: products with a {list(weight.shape)} "
                    f"matrix ({weight.dtype}) are not the same at every row"
                )
            self._pass_over(form, reason)
        raise ValueError(f"a {list(weight.shape)} matrix cannot be held: {reason}")

    def _pass_over(self, form: Form, reason: str) -> None:
        if (form.name, reason) not in self._logged:
            self._logged.add((form.name, reason))
            log.warning("weights held in another form", wanted=form.name, reason=reason)
