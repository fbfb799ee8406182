"""Real processes with TLS between them: they work, let nobody else in, take new certificates."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e import client
from tests.e2e.cluster import Cluster, cluster, get, until
from tests.e2e.mocked import compatibility, job
from tests.tls import needs_openssl

pytestmark = needs_openssl


async def hand_over(running: Cluster, seed: int) -> None:
    asked = job(random.Random(seed), 100, 20)
    async with client.connect(running.url) as http:
        answer = await client.whole(http, asked.body)
    assert answer.token_ids == asked.expected(compatibility(running))


def baton(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def seen(running: Cluster) -> list[dict[str, Any]]:
    """The gateway's view of its workers."""
    workers: list[dict[str, Any]] = get(running.cluster_url).json()["workers"]
    return workers


async def test_up_with_tls(tiny_llama: Path) -> None:
    with cluster(tiny_llama, "--mock", "--tls", "--kv-transports", "grpc") as running:
        running.until_healthy("p0", "d0")
        await hand_over(running, 1)
        assert baton("workers", "--gateway", running.rpc, *running.keys).returncode == 0
        for refused in (
            baton("workers", "--gateway", running.rpc),
            baton("drain", running.processes["d0"].address),
        ):
            why, *hint = refused.stderr.splitlines()
            assert refused.returncode == 1 and "unavailable" in why and len(hint) <= 1
        said = r"(gateway|d0) \| .*refused .*no certificate.* times=1"
        until(lambda: len(re.findall(said, running.output)) == 2, 30.0, "both refusals logged")

        directory = Path(running.keys[1]).parent
        for id, role in (("p0", "prefill"), ("d0", "decode")):
            made = baton("certs", str(directory), "--role", role, "--id", id)
            assert made.returncode == 0, made.stderr
        await hand_over(running, 2)
        for id in ("p0", "d0"):
            assert re.search(rf"{id} \| .*certificate read anew", running.output)
        workers = seen(running)
        assert all(worker["tls"] for worker in workers)
        assert sum(p["complete"] for worker in workers for p in worker["kv_pairings"]) == 2
