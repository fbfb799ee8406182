"""What a runner computes with beside its linears, and why: our C on a CPU, or torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.settings import AttentionChoice
from model.cuda.choice import choose_paged
from model.cuda.paged import AttentionShape, PagedAttention
from model.kernels.build import (
    PORTABLE,
    InstructionSet,
    KernelUnavailable,
    default_cache,
    supported,
)
from model.kernels.library import PagedAttentionLibrary, TokenOpsLibrary, load_library
from model.nets.attention import Attention, PlainAttention
from model.nets.config import ModelConfig
from model.nets.deterministic import SplitAttention
from model.nets.kernel_attention import KernelAttention
from model.nets.kernel_ops import KernelOps
from model.nets.ops import TokenOps, TorchOps, WritableCache
from model.nets.rope import RopeTable
from model.nets.rows import PlainRows, Rows, TiledRows


@dataclass(frozen=True, slots=True)
class ChosenAttention:
    attention: Attention
    name: str  #: tells apart what may differ in a bit
    reason: str | None = None  #: why it is not a better one, where that would have been taken
    token_ops: TokenOpsLibrary | None = None  #: goes with our kernel on a CPU
    paged: PagedAttention | None = None  #: on a CUDA device, where steps do not use ``attention``


def choose_attention(
    choice: AttentionChoice,
    config: ModelConfig,
    *,
    block_size: int,
    max_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool,
) -> ChosenAttention:
    """``auto`` is the kernel where it can be had and is the faster one: on a CPU with AVX2 at
    least. On a CUDA device: the best of ``model.cuda.choice``. Raises KernelUnavailable for one
    that is asked for by name and cannot be had."""
    reason = None
    if device.type == "cuda":
        shape = AttentionShape(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            windows=config.windows,
            max_positions=max_positions,
            dtype=dtype,
            device=device,
        )
        paged, reason = choose_paged(choice, shape, deterministic=deterministic)
        if paged is not None:
            plain = PlainAttention(torch.float16)
            return ChosenAttention(plain, paged.name, reason, paged=paged)
        choice = "torch"
    if choice in ("flashinfer", "varlen"):
        raise KernelUnavailable(f"--attention {choice} is for CUDA, not for {device}")
    if choice != "torch":
        try:
            target = _target(device, faster=choice == "auto")
            library = load_library(PagedAttentionLibrary, target, default_cache())
            token_ops = load_library(TokenOpsLibrary, target, default_cache())
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
            name = f"kernel {library.instructions} {library.digest} {token_ops.digest}"
            return ChosenAttention(attention, name, token_ops=token_ops)
    if deterministic:
        return ChosenAttention(SplitAttention(), "torch", reason)
    return ChosenAttention(PlainAttention(_dtype(dtype, device)), "torch", reason)


def choose_ops(
    chosen: ChosenAttention,
    config: ModelConfig,
    rope: RopeTable,
    cache: WritableCache,
    *,
    dtype: torch.dtype,
    deterministic: bool,
) -> TokenOps:
    """By our C where attention is."""
    if chosen.token_ops is not None:
        threads = torch.get_num_threads()
        return KernelOps(chosen.token_ops, config, rope, cache, dtype=dtype, threads=threads)
    rows: Rows = TiledRows() if deterministic else PlainRows()
    return TorchOps(config, rope, cache, rows)


def _target(device: torch.device, *, faster: bool) -> InstructionSet:
    """What to build for: the best of this CPU; only one that is ``faster`` than torch, if that is
    asked."""
    if device.type != "cpu":
        raise KernelUnavailable(f"the kernel is for the CPU, not for {device}")
    target = supported()[0]
    if faster and target is PORTABLE:
        raise KernelUnavailable("this CPU has no AVX2")
    return target


def _dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What torch's attention computes in: see PlainAttention."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
