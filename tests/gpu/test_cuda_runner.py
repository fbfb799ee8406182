"""The runner and its store on a CUDA device, against the same model on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from model.engine.plan import StepPlan
from tests.reference import FAMILIES, make_checkpoint
from tests.runners import Driver

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPT = [(i * 37) % 256 for i in range(70)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_logits_are_those_of_the_cpu(family: str, deterministic: bool, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path)
    here = Driver.load(path)
    there = Driver.load(path, device="cuda", deterministic=deterministic)
    # Attention rounds q to FP16 there, unless it is the deterministic one.
    tolerance = 1e-4 if deterministic else 5e-3
    for found, expected in (
        (there.prefill(0, PROMPT, chunk=32), here.prefill(0, PROMPT)),
        (there.decode({0: 5})[0], here.decode({0: 5})[0]),
    ):
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    there.runner.close()


def test_bytes_read_at_each_layer_are_complete_and_continue(tmp_path: Path) -> None:
    """A read that starts as soon as a layer is announced waits for the device by itself."""
    path = make_checkpoint("llama3", tmp_path)
    here, there = (Driver.load(path, device="cuda") for _ in range(2))
    piece = here.piece(0, PROMPT, sample=False, export=True)
    layers: list[bytes] = []

    def on_layer(layer: int) -> None:
        views = asyncio.run(here.runner.store.read(layer, piece.block_table))
        layers.append(b"".join(views))

    assert not here.runner.run(StepPlan(1, (piece,)), on_layer).errors
    received = there.piece(0, PROMPT, sample=False)
    for layer, data in enumerate(layers):
        asyncio.run(there.runner.store.write(layer, received.block_table, memoryview(data)))
    found, expected = there.decode({0: 9})[0], here.decode({0: 9})[0]
    assert np.allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    here.runner.close()
    there.runner.close()


def test_a_block_is_copied_before_the_step_writes(tmp_path: Path) -> None:
    path = make_checkpoint("llama3", tmp_path)
    here, there = Driver.load(path), Driver.load(path, device="cuda", deterministic=True)
    for driver in (here, there):
        driver.prefill(0, PROMPT)
        driver.fork(1, 0)
        driver.fork(2, 0)
    tokens = {0: 5, 1: 6, 2: 7}
    found, expected = there.decode(tokens), here.decode(tokens)
    for seq in tokens:
        assert np.abs(found[seq] - expected[seq]).max() < 1e-4 * np.abs(expected[seq]).max()
    there.runner.close()
