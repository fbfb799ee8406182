"""From settings to a runner: the model itself, or the mock, which needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import structlog

from baton.identity import CompatibilityClass
from baton.settings import WorkerSettings
from model.engine.mock_runner import Answers, CostModel, MockRunner
from model.engine.runner import Runner
from model.engine.settings import SchedulerSettings
from model.weights.errors import CheckpointError
from model.weights.hub import resolve_model

log = structlog.get_logger(__name__)

#: The mock's own small layout, whatever the model's: its KV costs time on the CPU.
_MOCK_LAYERS, _MOCK_KV_HEADS, _MOCK_HEAD_SIZE = 4, 2, 4
_MOCK_BLOCKS = 4096

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A runner, and what the rest of the worker needs to know of its model."""

    runner: Runner
    vocab_size: int
    limits: SchedulerSettings

    @property
    def max_model_len(self) -> int:
        """Longest sequence: the smaller of the model's context and the pool, in tokens."""
        pool = self.runner.num_blocks * self.limits.block_size
        return min(self.limits.max_model_len, pool)


def load_model(settings: WorkerSettings, progress: Progress) -> LoadedModel:
    """Blocks for as long as the weights take; ``progress`` hears 0 to 1.

    Raises CheckpointError, and ValueError for settings that cannot be met.
    """
    if settings.mock:
        runner, vocab_size, context = _mock(settings)
    else:
        runner, vocab_size, context = _torch(settings, progress)
    if settings.max_model_len is not None and settings.max_model_len > context:
        raise ValueError(
            f"--max-model-len {settings.max_model_len}: the model's context has {context} tokens"
        )
    limits = SchedulerSettings(
        block_size=settings.block_size,
        max_model_len=settings.max_model_len or context,
        max_tokens_per_step=settings.max_step_tokens,
        chunk_tokens=settings.chunk_tokens,
        max_running=settings.max_running,
        prefill_order=settings.prefill_order,
        itl_target_s=settings.itl_target_s,
        keep_blocks=settings.prefill_blocks(runner.num_blocks),
    )
    return LoadedModel(runner, vocab_size, limits)


def _torch(settings: WorkerSettings, progress: Progress) -> tuple[Runner, int, int]:
    # Imported here: a mock worker runs where torch is not installed.
    import torch

    from model.engine.torch_runner import load_runner
    from model.sampling.sampler import sample

    device = torch.device(settings.device)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} from cuda:0 on" if count else "no GPU here"
            raise ValueError(f"--device {device}: torch {torch.__version__} finds {found}")
    try:
        runner = load_runner(
            resolve_model(settings.model),
            sampler=sample,
            dtype=getattr(torch, settings.dtype),
            quantize=settings.quantize,
            device=device,
            num_blocks=settings.num_blocks,
            kv_memory_bytes=int(settings.kv_memory_gib * 2**30),
            block_size=settings.block_size,
            attention=settings.attention,
            deterministic=settings.deterministic,
            threads=settings.threads,
            graph_rows=settings.max_running if settings.cuda_graphs else 0,
            progress=progress,
        )
    except torch.OutOfMemoryError as error:
        raise ValueError(f"--device {device}: {error}") from error
    log.info("attention", by=runner.chosen.name, why_not_better=runner.chosen.reason)
    return runner, runner.config.vocab_size, runner.config.max_positions


def _mock(settings: WorkerSettings) -> tuple[Runner, int, int]:
    path = resolve_model(settings.model) / "config.json"
    try:
        text = path.read_bytes()
        config = json.loads(text)
        vocab_size = int(config["vocab_size"])
        context = int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error!r}") from error
    compatibility = CompatibilityClass(
        model_revision="mock-" + blake2b(text, digest_size=12).hexdigest(),
        layers=_MOCK_LAYERS,
        kv_heads=_MOCK_KV_HEADS,
        head_size=_MOCK_HEAD_SIZE,
        block_size=settings.block_size,
    )
    answers = Answers(low_id=min(32, vocab_size - 1), high_id=min(127, vocab_size))
    runner = MockRunner(
        compatibility, settings.num_blocks or _MOCK_BLOCKS, cost=_cost(settings), answers=answers
    )
    return runner, vocab_size, context


def _cost(settings: WorkerSettings) -> CostModel:
    """Raises CheckpointError naming the file, where there is one."""
    if settings.mock_costs is None:
        return CostModel(
            step_s=settings.mock_step_ms / 1e3,
            prefill_token_s=settings.mock_prefill_us / 1e6,
            decode_s=settings.mock_decode_us / 1e6,
        )
    try:
        return CostModel.read(settings.mock_costs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--mock-costs: {error}") from error
