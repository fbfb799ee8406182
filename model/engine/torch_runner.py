"""The runner that owns the device: one packed forward pass per step plan.

Built once with everything it needs; ``load_runner`` builds it from a model directory. All of
``run`` happens on the engine thread, under inference mode.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.errors import (
    BatonError,
    ContextLengthExceeded,
    InvalidRequest,
    KvOverflow,
)
from baton.identity import CompatibilityClass
from baton.settings import AttentionChoice, Quantize
from model.cache.cuda_store import CudaStore
from model.cache.pool import FP16_LIMIT, KvPool
from model.cache.store import HostStore
from model.engine.plan import Sample, Slice, StepPlan, StepResult
from model.engine.runner import BlockStore, LayerListener
from model.nets.attention import Span
from model.nets.choice import ChosenAttention, choose_attention
from model.nets.config import ModelConfig, load_config
from model.nets.rope import RopeTable
from model.nets.rows import PlainRows, Rows, TiledRows, require_row_independence
from model.nets.transformer import ModelWeights, Transformer
from model.weights.loader import Progress, load_weights
from model.weights.revision import model_revision

#: (logits float32 [vocab], what was asked) -> token id; raises BatonError to fail one sequence.
Sampler = Callable[[npt.NDArray[np.float32], Sample], int]

_DEFAULT_CPU_KV_BYTES = 1 << 30
_DEFAULT_CUDA_KV_SHARE = 0.85  # of the memory that is free once the weights are loaded


@dataclass(frozen=True, slots=True)
class _Step:
    """A plan's slices packed one after another, as tensors on the device."""

    token_ids: Tensor  #: int64 [n]
    positions: Tensor  #: int64 [n]
    rows: Tensor  #: int64 [2 * n], where K and V go in the pool
    spans: tuple[Span, ...]


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
        sampler: Sampler,
        attention: AttentionChoice = "auto",
        deterministic: bool = False,
    ) -> None:
        """Allocate the pool beside the weights, on their device.

        ``revision`` names the weights (model_revision). Raises ValueError for sizes that are
        not positive or an ``attention`` that cannot be had, RuntimeError when ``deterministic``
        cannot be promised on this build of torch.
        """
        if num_blocks <= 0 or block_size <= 0:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be above 0")
        self.config = config
        self._device = weights.embedding.device
        dtype = weights.embedding.dtype
        self._pool = KvPool(
            layers=config.layers,
            num_blocks=num_blocks,
            block_size=block_size,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            device=self._device,
        )
        self._store = (
            CudaStore(self._pool) if self._pool.host is None else HostStore(self._pool.host)
        )
        self._sampler = sampler
        rows: Rows = TiledRows() if deterministic else PlainRows()
        self.chosen: ChosenAttention = choose_attention(
            attention,
            config,
            block_size=block_size,
            dtype=dtype,
            device=self._device,
            deterministic=deterministic,
        )
        self._attention = self.chosen.attention
        if deterministic:
            require_row_independence(weights.linears(), dtype, self._device)
        self.max_positions = min(config.max_positions, num_blocks * block_size)
        rope = RopeTable(config.rope, config.head_dim, self.max_positions, self._device)
        self._net = Transformer(config, weights, rope, rows)
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
        tokens: dict[int, int] = {}
        if plan.copies:
            self._pool.copy([c.source for c in plan.copies], [c.target for c in plan.copies])
        if slices:
            step = self._pack(slices)
            if isinstance(self._store, CudaStore):
                self._store.begin_step(self._exported(slices))
            hidden, peaks = self._forward(step, on_layer)
            errors |= _overflows(slices, step.spans, peaks)
            asking = [
                (piece.asked, span.first + span.count - 1)
                for piece, span in zip(slices, step.spans, strict=True)
                if piece.asked and piece.seq_id not in errors
            ]
            logits = self._logits(hidden, [row for _, row in asking])
            for (asked, _), row in zip(asking, logits, strict=True):
                for seq_id, sample in asked:
                    try:
                        tokens[seq_id] = self._sampler(row, sample)
                    except BatonError as error:
                        errors[seq_id] = error
        return StepResult(plan.step, tokens, errors, time.perf_counter() - began)

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

    def _pack(self, slices: Sequence[Slice]) -> _Step:
        token_ids, positions, blocks, spans, first = [], [], [], [], 0
        for piece in slices:
            table = np.asarray(piece.block_table, dtype=np.int64)
            where = np.arange(piece.start, piece.end, dtype=np.int64)
            token_ids.append(np.asarray(piece.token_ids, dtype=np.int64))
            positions.append(where)
            blocks.append(table[where // self._pool.block_size])
            ids = torch.from_numpy(table).to(self._device)
            spans.append(Span(first, len(where), piece.start, ids))
            first += len(where)
        where = np.concatenate(positions)
        rows = self._pool.rows_of(np.concatenate(blocks), where % self._pool.block_size)
        packed = (np.concatenate(token_ids), where, rows)
        on_device = [torch.from_numpy(x).to(self._device) for x in packed]
        return _Step(on_device[0], on_device[1], on_device[2], tuple(spans))

    def _forward(self, step: _Step, on_layer: LayerListener) -> tuple[Tensor, Tensor]:
        """Hidden states [n, hidden], and each layer's and token's largest K or V [layers, n]."""
        peaks: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            peaks.append(self._pool.write(layer, step.rows, k, v))
            if isinstance(self._store, CudaStore):
                self._store.mark_written(layer)
            on_layer(layer)
            window = self.config.windows[layer]
            return self._attention(layer, q, self._pool, step.spans, window)

        hidden = self._net.forward(step.token_ids, step.positions, attend)
        # Reading the peaks on the host also ends the step synchronised with the device.
        return hidden, torch.stack(peaks).cpu()

    def _logits(self, hidden: Tensor, rows: list[int]) -> npt.NDArray[np.float32]:
        """Logits of the given rows only, float32 [len(rows), vocab]."""
        if not rows:
            return np.empty((0, self.config.vocab_size), dtype=np.float32)
        picked = hidden[torch.tensor(rows, device=self._device)]
        logits: npt.NDArray[np.float32] = self._net.logits(picked).float().cpu().numpy()
        return logits


def _overflows(
    slices: Sequence[Slice], spans: Sequence[Span], peaks: Tensor
) -> dict[int, BatonError]:
    """A KvOverflow for every slice with a K or V beyond FP16; ``peaks`` is [layers, n]."""
    beyond = ~(peaks < FP16_LIMIT)  # this way round NaN is beyond, too
    if not bool(beyond.any()):
        return {}
    errors: dict[int, BatonError] = {}
    for piece, span in zip(slices, spans, strict=True):
        found = beyond[:, span.first : span.first + span.count].nonzero()
        if len(found):
            layer, offset = (int(index) for index in found[0])
            errors[piece.seq_id] = KvOverflow(
                f"a key or value of magnitude {float(peaks[layer, span.first + offset]):g} in "
                f"layer {layer} at position {span.start + offset} does not fit the FP16 cache, "
                f"whose largest is 65504"
            )
    return errors


def load_runner(
    directory: Path,
    *,
    sampler: Sampler,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: Quantize | None = None,
    num_blocks: int | None = None,
    kv_memory_bytes: int | None = None,
    block_size: int = 16,
    attention: AttentionChoice = "auto",
    deterministic: bool = False,
    threads: int | None = None,
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
        num_blocks = memory // (config.layers * config.kv_bytes_per_token * block_size)
    return TorchRunner(
        config,
        weights,
        revision=model_revision(directory),
        num_blocks=num_blocks,
        block_size=block_size,
        sampler=sampler,
        attention=attention,
        deterministic=deterministic,
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
