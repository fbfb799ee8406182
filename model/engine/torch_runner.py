"""The runner that owns the device: one packed forward pass per step plan.

Built once with everything it needs; ``load_runner`` builds it from a model directory. All of
``run`` happens on the engine thread, under inference mode.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.errors import (
    BatonError,
    ContextLengthExceeded,
    InvalidRequest,
)
from baton.identity import CompatibilityClass
from baton.settings import AttentionChoice, Quantize
from model.cache.cuda_store import CudaStore
from model.cache.pool import KvPool
from model.cache.store import HostStore
from model.engine.overflow import overflows
from model.engine.packing import PackedStep, Packer
from model.engine.plan import Drawn, Slice, StepPlan, StepResult
from model.engine.runner import BlockStore, LayerListener
from model.nets.choice import ChosenAttention, choose_attention, choose_ops
from model.nets.config import ModelConfig, load_config
from model.nets.rope import RopeTable
from model.nets.rows import require_row_independence, row_independent
from model.nets.transformer import ModelWeights, Transformer
from model.sampling.device import HostSampler
from model.sampling.logprobs import logprobs
from model.weights.loader import Progress, load_weights
from model.weights.revision import model_revision

if TYPE_CHECKING:
    from model.cuda.steps import CudaSteps

_DEFAULT_CPU_KV_BYTES = 1 << 30
_DEFAULT_CUDA_KV_SHARE = 0.85  # of the memory that is free once the weights are loaded


class TorchRunner:
    """Implements ``Runner`` (model/engine/runner.py) with the nets of ``model.nets``."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        *,
        revision: str,
        num_blocks: int,
        block_size: int,
        sampler: HostSampler,
        attention: AttentionChoice = "auto",
        deterministic: bool = False,
        graph_rows: int = 0,
    ) -> None:
        """Allocate the pool beside the weights, on their device.

        ``revision`` names the weights (model_revision). On a CUDA device decode steps of up to
        ``graph_rows`` sequences are captured as graphs. Raises ValueError for sizes that are
        not positive, an ``attention`` that cannot be had, and ``deterministic`` where it cannot be
        promised on this build of torch.
        """
        if num_blocks <= 0 or block_size <= 0:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be above 0")
        self.config = config
        self._device = weights.norm.device
        dtype = weights.norm.dtype
        self._pool = KvPool(
            layers=config.layers,
            num_blocks=num_blocks,
            block_size=block_size,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            device=self._device,
            spare=1 if self._device.type == "cuda" else 0,
        )
        self._packer = Packer(self._pool)
        self._store = (
            CudaStore(self._pool) if self._pool.host is None else HostStore(self._pool.host)
        )
        self._sampler = sampler
        self.max_positions = min(config.max_positions, num_blocks * block_size)
        self.chosen: ChosenAttention = choose_attention(
            attention,
            config,
            block_size=block_size,
            max_positions=self.max_positions,
            dtype=dtype,
            device=self._device,
            deterministic=deterministic,
        )
        self._attention = self.chosen.attention
        if deterministic:
            require_row_independence(weights.linears(), dtype, self._device)
            weights = weights.each_linear(row_independent)
        rope = RopeTable(config.rope, config.head_dim, self.max_positions, self._device)
        self._ops = choose_ops(
            self.chosen, config, rope, self._pool, dtype=dtype, deterministic=deterministic
        )
        self._net = Transformer(weights, self._ops)
        self._cuda = self._cuda_steps(weights, graph_rows)
        self._compatibility = CompatibilityClass(
            model_revision=revision,
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_size=config.head_dim,
            block_size=block_size,
        )
        self._numerics_id = _numerics_id(
            dtype, weights.kind, self._device, self.chosen.name, deterministic, block_size
        )

    def _cuda_steps(self, weights: ModelWeights, graph_rows: int) -> CudaSteps | None:
        """What computes every step where attention is paged: model/cuda."""
        if self.chosen.paged is None:
            return None
        # Imported here: it needs Triton, which only torch for CUDA brings along.
        from model.cuda.steps import CudaSteps

        return CudaSteps(
            self.config,
            weights,
            self._pool,
            self._store,
            self.chosen.paged,
            self._sampler,
            max_positions=self.max_positions,
            graph_rows=graph_rows,
        )

    @property
    def compatibility(self) -> CompatibilityClass:
        return self._compatibility

    @property
    def numerics_id(self) -> str:
        return self._numerics_id

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def store(self) -> BlockStore:
        return self._store

    def close(self) -> None:
        if isinstance(self._store, CudaStore):
            self._store.close()

    @torch.inference_mode()
    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        """See ``Runner.run``. A slice that cannot be computed at all (an id outside the
        vocabulary, a position past the context) fails alone; the others run without it, and if
        none is left no layer is announced."""
        began = time.perf_counter()
        errors = {s.seq_id: error for s in plan.slices if (error := self._refusal(s)) is not None}
        slices = [s for s in plan.slices if s.seq_id not in errors]
        drawn = Drawn()
        if plan.copies:
            self._pool.copy([c.source for c in plan.copies], [c.target for c in plan.copies])
        if slices:
            compute = self._compute if self._cuda is None else self._cuda.run
            drawn = compute(slices, on_layer)
            errors |= drawn.errors
        seconds = time.perf_counter() - began
        return StepResult(plan.step, drawn.tokens, errors, seconds, drawn.logprobs)

    def _compute(self, slices: Sequence[Slice], on_layer: LayerListener) -> Drawn:
        """By plain torch; logits are sampled on the host."""
        step = self._packer.pack(slices)
        if isinstance(self._store, CudaStore):
            self._store.begin_step(self._exported(slices))
        hidden, peaks = self._forward(step, on_layer)
        drawn = Drawn(errors=overflows(slices, peaks.numpy()))
        asking = [
            (piece.asked, span.first + span.count - 1)
            for piece, span in zip(slices, step.spans, strict=True)
            if piece.asked and piece.seq_id not in drawn.errors
        ]
        logits = self._logits(hidden, [row for _, row in asking])
        for (asked, _), row in zip(asking, logits, strict=True):
            for seq_id, sample in asked:
                try:
                    token = drawn.tokens[seq_id] = self._sampler(row, sample)
                except BatonError as error:
                    drawn.errors[seq_id] = error
                    continue
                if sample.spec.logprobs is not None:
                    drawn.logprobs[seq_id] = logprobs(row, token, sample.spec.logprobs)
        return drawn

    def _refusal(self, piece: Slice) -> BatonError | None:
        """Why a slice cannot be packed; an id outside the embedding would take all others down."""
        if piece.end > self.max_positions:
            return ContextLengthExceeded(
                f"{piece.end} tokens, but context and pool hold {self.max_positions}"
            )
        vocab = self.config.vocab_size
        if min(piece.token_ids) < 0 or max(piece.token_ids) >= vocab:
            bad = next(token for token in piece.token_ids if not 0 <= token < vocab)
            return InvalidRequest(f"token id {bad} is outside the vocabulary 0 .. {vocab - 1}")
        return None

    def _exported(self, slices: Sequence[Slice]) -> set[int]:
        """The blocks written for sequences whose KV is handed over while it is computed."""
        size = self._pool.block_size
        tables = (s.block_table[s.start // size : -(-s.end // size)] for s in slices if s.export)
        return {block for table in tables for block in table}

    def _forward(self, step: PackedStep, on_layer: LayerListener) -> tuple[Tensor, Tensor]:
        """Hidden states [n, hidden], and each layer's and token's largest K or V [layers, n]."""

        def attend(layer: int, q: Tensor) -> Tensor:
            if isinstance(self._store, CudaStore):
                self._store.mark_written(layer)
            on_layer(layer)
            window = self.config.windows[layer]
            return self._attention(layer, q, self._pool, step.spans, window)

        self._ops.begin(step.positions, step.rows)
        hidden = self._net.forward(step.token_ids, attend)
        # Reading the peaks on the host also ends the step synchronised with the device.
        return hidden, self._ops.peaks()

    def _logits(self, hidden: Tensor, rows: list[int]) -> npt.NDArray[np.float32]:
        """Logits of the given rows only, float32 [len(rows), vocab]."""
        if not rows:
            return np.empty((0, self.config.vocab_size), dtype=np.float32)
        if len(rows) < len(hidden):
            hidden = hidden[torch.tensor(rows, device=self._device)]
        logits: npt.NDArray[np.float32] = self._net.logits(hidden).float().cpu().numpy()
        return logits


def load_runner(
    directory: Path,
    *,
    sampler: HostSampler,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: Quantize | None = None,
    num_blocks: int | None = None,
    kv_memory_bytes: int | None = None,
    block_size: int = 16,
    attention: AttentionChoice = "auto",
    deterministic: bool = False,
    threads: int | None = None,
    graph_rows: int = 0,
    progress: Progress | None = None,
) -> TorchRunner:
    """Check and load a model directory, and size the pool.

    The pool has ``num_blocks`` blocks, or as many as fit ``kv_memory_bytes``; with neither it
    gets 1 GiB on a CPU, and on a GPU 85 % of what is free beside the weights. ``threads`` are
    torch's on a CPU, for the whole process; None leaves them. ``progress`` hears 0 to 1 while
    weights are read. Raises CheckpointError, ValueError, and what TorchRunner does.
    """
    device = torch.device(device)
    if threads is not None:
        torch.set_num_threads(threads)  # first of all: oneDNN packs for as many
    config = load_config(directory)
    weights = load_weights(
        directory,
        config,
        dtype=dtype,
        device=device,
        quantize=quantize,
        deterministic=deterministic,
        progress=progress,
    )
    if num_blocks is None:
        memory = kv_memory_bytes if kv_memory_bytes is not None else _default_kv_bytes(device)
        block = config.layers * config.kv_bytes_per_token * block_size
        if not (num_blocks := memory // block):
            raise ValueError(
                f"{memory} bytes for KV (--kv-memory-gib) do not hold a block of {block} bytes"
            )
    return TorchRunner(
        config,
        weights,
        revision=model_revision(directory),
        num_blocks=num_blocks,
        block_size=block_size,
        sampler=sampler,
        attention=attention,
        deterministic=deterministic,
        graph_rows=graph_rows,
    )


def _default_kv_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _DEFAULT_CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _DEFAULT_CUDA_KV_SHARE)


def _numerics_id(
    dtype: torch.dtype,
    weights: str,
    device: torch.device,
    attention: str,
    deterministic: bool,
    block_size: int,
) -> str:
    """Everything that may change a bit of a result, from the build to the thread count."""
    if device.type == "cuda":
        chip = torch.cuda.get_device_name(device)
    else:
        # MKL and oneDNN choose their kernels by the CPU's make, not by its instructions alone.
        vectors = torch.backends.cpu.get_cpu_capability()
        chip = f"{_cpu_name()} {vectors}, {torch.get_num_threads()} threads"
    mode = "deterministic" if deterministic else "plain"
    name = str(dtype).removeprefix("torch.")
    return (
        f"torch {torch.__version__}; {device.type} {chip}; {name}; {weights} weights; "
        f"attention {attention}; {mode}; block {block_size}"
    )


def _cpu_name() -> str:
    """The CPU's model as Linux tells it, elsewhere what the platform says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
