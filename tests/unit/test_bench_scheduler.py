"""bench.scheduler and bench.shared_prefix: what they measure, and that the bounds hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from bench import scheduler
from bench.shared_prefix import Load, measure, run
from model.engine.mock_runner import CostModel, MockRunner
from model.engine.settings import SchedulerSettings
from model.worker.loading import LoadedModel
from tests.mock_engines import MOCK_CLASS


def test_a_step_at_256_sequences(record_property: Callable[[str, object], None]) -> None:
    """The bound is 200 microseconds on a quiet machine; twice that here, for noisy neighbours."""
    for record in scheduler.measure([256], 320):
        record_property(f"{record.params['borders']} {record.name}", record.value)
        assert record.name == "p99" or record.value < 400, record


def test_every_sequence_fills_a_block_when_it_should() -> None:
    for borders, most in (("spread", 1), ("together", 16)):
        batch = scheduler.batch(16, borders, 64)
        owned = []
        for _ in range(64):
            scheduler.costs(batch, 1)
            owned.append(batch._memory._pool.counts().owned)
        grown = [after - before for before, after in pairwise(owned)]
        assert max(grown) == most and batch.check() == []


def test_what_is_measured_is_written(tmp_path: Path) -> None:
    scheduler.main(["--sequences", "4", "--steps", "40", "--json", str(tmp_path / "s.json")])
    names = [record["name"] for record in json.loads((tmp_path / "s.json").read_text())]
    assert names == ["median", "p99", "median", "p99", "all at a border"]
    with pytest.raises(SystemExit):
        scheduler.main(["--steps", "8"])


def test_a_common_prefix_is_computed_once() -> None:
    runner = MockRunner(MOCK_CLASS, 512, cost=CostModel(), sleep=lambda _: None)
    limits = SchedulerSettings(
        block_size=4,
        max_model_len=256,
        max_tokens_per_step=64,
        chunk_tokens=64,
        max_running=16,
        prefill_order="fcfs",
    )
    loaded, load = LoadedModel(runner, 512, limits), Load(8, prefix=32, suffix=4, output=4)
    assert run(loaded, load, 1, prefix_cache=True).computed == 32 + 8 * 4
    assert run(loaded, load, 1, prefix_cache=False).computed == 8 * 36
    ratio = measure(loaded, load, 1)[-1]
    assert ratio.unit == "ratio" and ratio.value > 0
