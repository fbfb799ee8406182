"""``python -m bench.sender``: a prefill worker that computes nothing.

All but its runner is the real thing. Blocks hold the same small values from the start, and are
announced layer by layer at a pace: what is measured with it is the hand-off alone.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from pydantic import Field

from baton.configure import load
from baton.identity import CompatibilityClass
from baton.settings import PrefillSettings
from model.cache.store import HostStore
from model.engine.plan import StepPlan, StepResult
from model.engine.runner import LayerListener
from model.engine.settings import SchedulerSettings
from model.nets.config import load_config
from model.weights.hub import resolve_model
from model.weights.revision import model_revision
from model.worker.loading import LoadedModel
from model.worker.process import run
from prefill_worker.role import prefill_role

_TOKEN = 7  # what it always answers


class SenderSettings(PrefillSettings):
    """A prefill worker that offers KV without computing it, for benchmarks."""

    section = "sender"

    num_blocks: int = Field(ge=1, description="KV blocks (required)")
    gb_per_s: float = Field(gt=0, description="KV made per second, 10^9 bytes; inf: at once")


class PacedRunner:
    """Implements ``Runner`` (model/engine/runner.py) for a pool that is filled already."""

    numerics_id = "paced"

    def __init__(
        self, compatibility: CompatibilityClass, num_blocks: int, bytes_per_s: float
    ) -> None:
        self.compatibility = compatibility
        self.num_blocks = num_blocks
        values = compatibility.block_bytes // 2
        pool = np.empty((compatibility.layers, num_blocks, values), dtype=np.float16)
        pool[:] = np.random.default_rng(0).standard_normal(values)
        self.store = HostStore(pool)
        self._layer_s_per_token = compatibility.block_bytes / compatibility.block_size / bytes_per_s
        self._due = 0.0

    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        """Each layer is due a layer's time after the one before it, or after a pause."""
        began = time.perf_counter()
        self._due = max(self._due, began)
        for layer in range(self.compatibility.layers):
            self._due += plan.tokens * self._layer_s_per_token
            time.sleep(max(0.0, self._due - time.perf_counter()))
            on_layer(layer)
        asked = {piece.seq_id: _TOKEN for piece in plan.slices if piece.sample is not None}
        return StepResult(plan.step, asked, compute_s=time.perf_counter() - began)

    def close(self) -> None:
        """Nothing to close."""


def load_sender(settings: SenderSettings) -> LoadedModel:
    """Of a checkpoint nothing is needed but its shape and its name. Raises CheckpointError."""
    directory = resolve_model(settings.model)
    config = load_config(directory)
    compatibility = CompatibilityClass(
        model_revision=model_revision(directory),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_size=config.head_dim,
        block_size=settings.block_size,
    )
    runner = PacedRunner(compatibility, settings.num_blocks, settings.gb_per_s * 1e9)
    limits = SchedulerSettings(
        block_size=settings.block_size,
        max_model_len=config.max_positions,
        max_tokens_per_step=settings.max_step_tokens,
        chunk_tokens=settings.chunk_tokens,
        max_running=settings.max_running,
        prefill_order=settings.prefill_order,
    )
    return LoadedModel(runner, config.vocab_size, limits)


def main() -> int:
    settings = load(SenderSettings, sys.argv[1:], "bench.sender")
    return run("bench.sender", settings, prefill_role(), lambda _, __: load_sender(settings))


if __name__ == "__main__":
    sys.exit(main())
