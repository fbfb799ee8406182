"""What tests of every kind share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a machine that is shared an example may take any time, and so may making one.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.shares import Shares

    return Shares(config, log)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 3 with a byte tokenizer and a context of 512."""
    from tests.reference import make_checkpoint

    return make_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="session", params=["kernel", "torch"])
def attention(request: pytest.FixtureRequest) -> str:
    """Each way to compute attention on a CPU; the kernel only where it can be had."""
    from model.kernels.build import KernelUnavailable, default_cache, supported
    from model.kernels.library import PagedAttentionLibrary, load_library

    if request.param == "kernel":
        try:
            load_library(PagedAttentionLibrary, supported()[0], default_cache())
        except KernelUnavailable as error:
            pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector, as between two of its runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
