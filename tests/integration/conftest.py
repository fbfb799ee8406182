"""A gateway before a model that thinks and calls tools. Modules that want another define theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes import FakeWorker, answering
from tests.gateways import Gateway, serving
from tests.tool_talk import CALLS, write_talking_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
async def worker() -> FakeWorker:
    return FakeWorker(script=answering(CALLS), local_prefill=True)


@pytest.fixture
async def gateway(checkpoint: Path, worker: FakeWorker) -> AsyncIterator[Gateway]:
    async with serving(checkpoint, [worker]) as served:
        yield served
