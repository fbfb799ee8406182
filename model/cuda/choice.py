"""Which paged attention a CUDA device computes with, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton.settings import AttentionChoice
from model.cuda.flashinfer_attention import FlashInferAttention, flashinfer_refusal
from model.cuda.modules import installed
from model.cuda.paged import AttentionShape, PagedAttention
from model.cuda.varlen_attention import VarlenAttention, varlen_refusal
from model.kernels.build import KernelUnavailable


@dataclass(frozen=True, slots=True)
class Way:
    """One way to attend on a CUDA device."""

    refusal: Callable[[AttentionShape], str | None]  #: why it cannot be had, None where it can
    make: Callable[[AttentionShape], PagedAttention]


def _triton(shape: AttentionShape) -> PagedAttention:
    # Imported here: Triton is part of torch for CUDA only.
    from model.cuda.kernel_attention import TritonAttention

    return TritonAttention(shape)


#: The best first, by ``--attention``.
WAYS: dict[AttentionChoice, Way] = {
    "flashinfer": Way(flashinfer_refusal, FlashInferAttention),
    "varlen": Way(varlen_refusal, VarlenAttention),
    "kernel": Way(lambda shape: None, _triton),
}


def choose_paged(
    choice: AttentionChoice, shape: AttentionShape, *, deterministic: bool
) -> tuple[PagedAttention | None, str | None]:
    """The attention, None where torch is to compute sequence by sequence; and why not a better one.

    Raises KernelUnavailable when one is asked for by name and cannot be had.
    """
    if choice == "torch":
        return None, "--attention torch"
    reason = _never(shape, deterministic=deterministic)
    if reason is None:
        passed_over: list[str] = []
        for name, way in WAYS.items():
            if choice not in ("auto", name):
                continue
            refusal = way.refusal(shape)
            if refusal is None:
                return way.make(shape), "; ".join(passed_over) or None
            passed_over.append(refusal)
        reason = "; ".join(passed_over)
    if choice != "auto":
        raise KernelUnavailable(f"--attention {choice}: {reason}")
    return None, reason


def _never(shape: AttentionShape, *, deterministic: bool) -> str | None:
    """What rules out every way."""
    if deterministic:
        return "--deterministic: paged attention depends on the batch in its last bits"
    if not installed("triton"):
        return "triton is not installed"
    return None
