"""Prefill and decode in two processes that share a GPU: the same tokens, and nobody is slower."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from baton.cli import ports, probes
from baton.cli.display import Phase
from tests.e2e import client
from tests.e2e.cluster import cluster
from tests.reference import make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
]
DEVICE = "cuda:0"
ALLOWED = 1.03
#: Large enough that steps take milliseconds: about 0.3 billion parameters, 32 KiB of KV a token.
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
TOKENS, ROUNDS = 4096, 9


@pytest.mark.parametrize("transport", ["shm", "grpc"])
@pytest.mark.parametrize("deterministic", [True, False])
async def test_tokens_are_those_of_one_process(
    transport: str, deterministic: bool, tiny_llama: Path
) -> None:
    """Bit for bit, or, with graphs and paged attention, but where summation decides."""
    asked = [client.body([(i * 37 + n) % 256 for i in range(n)], 24) for n in (15, 16, 130, 257)]

    async def answers(*flags: str) -> list[list[int]]:
        common = ["--device", DEVICE, "--chunk-tokens", "100"]
        common += ["--deterministic"] * deterministic
        with cluster(tiny_llama, *common, *flags) as running:
            async with client.connect(running.url) as http:
                return await asyncio.gather(*(client.tokens(http, each) for each in asked))

    expected = await answers("--colocated", "1")
    found = await answers("--kv-transports", transport)
    if deterministic:
        assert found == expected
    else:
        assert [tokens[0] for tokens in found] == [tokens[0] for tokens in expected]
        assert sum(map(list.__eq__, found, expected)) >= len(asked) - 1


@asynccontextmanager
async def prefill_worker(model: Path, transport: str) -> AsyncIterator[str]:
    """A worker process on the device; yields its address."""
    address = f"127.0.0.1:{next(ports.free('127.0.0.1'))}"
    flags = ["--model", str(model), "--device", DEVICE, "--dtype", "bfloat16", "--threads", "1"]
    flags += ["--port", address.partition(":")[2], "--kv-transports", transport]
    flags += ["--no-prefix-cache", "--exit-with-parent"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "prefill_worker", *flags)
    try:
        async with asyncio.timeout(120):
            while await probes.worker(address) is not Phase.READY:
                assert process.returncode is None
                await asyncio.sleep(0.2)
        yield address
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("transport", ["shm", "grpc"])
async def test_the_hand_off_does_not_delay_the_prefill(
    transport: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    model = make_checkpoint("llama3", tmp_path, **SIZES)
    async with prefill_worker(model, transport) as address:
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.gpu.reader"),
            *(address, transport, DEVICE, str(TOKENS), str(ROUNDS)),
            stdin=DEVNULL,
            stdout=PIPE,
        )
        out, _ = await reader.communicate()
        assert reader.returncode == 0
    measured = json.loads(out.splitlines()[-1])
    assert measured["bytes"] == TOKENS * 16 * 2 * 8 * 64 * 2
    read, unread = (statistics.median(measured[kind]) for kind in ("read", "unread"))
    print(f"{transport}: {read * 1e3:.1f} ms with the KV read, {unread * 1e3:.1f} ms without")
    record_property("delay", read / unread)
    assert read / unread <= ALLOWED
