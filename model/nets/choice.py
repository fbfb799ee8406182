"""Which attention a runner computes with, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.settings import AttentionChoice
from model.kernels.build import PORTABLE, KernelUnavailable, default_cache, supported
from model.kernels.library import PagedAttentionLibrary, load_library
from model.nets.attention import Attention, PlainAttention
from model.nets.config import ModelConfig
from model.nets.deterministic import SplitAttention
from model.nets.kernel_attention import KernelAttention


@dataclass(frozen=True, slots=True)
class ChosenAttention:
    attention: Attention
    name: str  #: tells apart what may differ in a bit
    reason: str | None = None  #: why it is not our kernel, where that would have been taken


def choose_attention(
    choice: AttentionChoice,
    config: ModelConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool,
) -> ChosenAttention:
    """``auto`` is the kernel where it can be had and is the faster one: on a CPU with AVX2 at
    least. Raises KernelUnavailable when ``kernel`` is asked for and cannot be had."""
    reason = None
    if choice != "torch":
        try:
            library = _library(device, faster=choice == "auto")
        except KernelUnavailable as error:
            if choice == "kernel":
                raise KernelUnavailable(f"--attention kernel: {error}") from error
            reason = str(error)
        else:
            attention = KernelAttention(
                library,
                config,
                block_size=block_size,
                dtype=dtype,
                threads=torch.get_num_threads(),
            )
            return ChosenAttention(attention, f"kernel {library.instructions} {library.digest}")
    if deterministic:
        return ChosenAttention(SplitAttention(), "torch", reason)
    return ChosenAttention(PlainAttention(_dtype(dtype, device)), "torch", reason)


def _library(device: torch.device, *, faster: bool) -> PagedAttentionLibrary:
    """The best build for this CPU; only one that is ``faster`` than torch, if that is asked."""
    if device.type != "cpu":
        raise KernelUnavailable(f"the kernel is for the CPU, not for {device}")
    target = supported()[0]
    if faster and target is PORTABLE:
        raise KernelUnavailable("this CPU has no AVX2")
    return load_library(PagedAttentionLibrary, target, default_cache())


def _dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What torch's attention computes in: see PlainAttention."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
