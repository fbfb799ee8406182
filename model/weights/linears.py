"""Which form each matrix of a model is held in, decided while it is read."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from baton.settings import Quantize
from model.cuda.int8 import CUDA_INT8
from model.nets.linear import PACKED, PLAIN, Form, Linear
from model.nets.quantized import INT4, INT8
from model.nets.rows import is_row_independent

log = structlog.get_logger(__name__)

_FORMS: dict[Quantize | None, tuple[Form, ...]] = {
    None: (PACKED, PLAIN),
    "int8": (INT8, PACKED, PLAIN),
    "int4": (INT4, INT8, PACKED, PLAIN),
}


def forms(quantize: Quantize | None, device: torch.device) -> tuple[Form, ...]:
    """The forms to try, best first. Raises ValueError where a device has none that is asked for."""
    if device.type == "cpu":
        return _FORMS[quantize]
    if quantize == "int4":
        raise ValueError(f"--quantize {quantize} is implemented for cpu, not for {device}")
    return (CUDA_INT8, PLAIN) if quantize == "int8" else (PLAIN,)


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

        Raises RuntimeError where no form can.
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
        raise RuntimeError(f"a {list(weight.shape)} matrix cannot be held: {reason}")

    def _pass_over(self, form: Form, reason: str) -> None:
        if (form.name, reason) not in self._logged:
            self._logged.add((form.name, reason))
            log.warning("weights held in another form", wanted=form.name, reason=reason)
