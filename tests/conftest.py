"""What tests of every kind share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 3 with a byte tokenizer and a context of 512."""
    from tests.reference import make_checkpoint

    return make_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))
