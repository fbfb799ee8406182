"""Baton's nets against transformers: every family, prefill in chunks and decode steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.reference import FAMILIES, VOCAB_SIZE, Reference, make_checkpoint, reference_greedy
from tests.runners import Driver

PROMPT = [int(x) for x in np.random.default_rng(5).integers(0, VOCAB_SIZE, 70)]
GENERATED = 64


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("chunk", [1000, 32, 7])
def test_logits_are_those_of_transformers(checkpoint: Path, attention: str, chunk: int) -> None:
    driver = Driver.load(checkpoint, attention=attention)
    reference = Reference(checkpoint)
    expected = reference.extend(PROMPT)[-1].numpy()
    _same(driver.prefill(0, PROMPT, chunk=chunk), expected)
    for token in (3, 141, 59, 26, 5):
        expected = reference.extend([token])[-1].numpy()
        _same(driver.decode({0: token})[0], expected)


def test_sixty_four_greedy_tokens(checkpoint: Path, attention: str) -> None:
    driver = Driver.load(checkpoint, attention=attention)
    expected, gaps = reference_greedy(checkpoint, PROMPT, GENERATED)
    assert len(set(expected)) > 8, "the reference repeats itself and proves nothing"
    found = driver.greedy(0, PROMPT, GENERATED, chunk=32)
    differing = [i for i in range(GENERATED) if found[i] != expected[i]]
    assert not differing, f"token {differing[0]} differs; top-2 gap there {gaps[differing[0]]}"


def _same(found: np.ndarray, expected: np.ndarray) -> None:
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < 1e-4, f"logits differ by {worst:.2e} of the largest"
