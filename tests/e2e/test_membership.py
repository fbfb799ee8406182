"""Real workers join a running fleet, die, come back elsewhere, drain and leave; the gateway itself
is killed. Nothing else is restarted for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.cli import ports
from tests.e2e import client
from tests.e2e.cluster import (
    MODEL,
    ROOT,
    START_SECONDS,
    Cluster,
    Process,
    cluster,
    get,
    until,
    until_idle,
)

#: Beats are a second; a busy machine may be late.
THREE_BEATS = 3.0 + 7.0


@contextmanager
def worker(running: Cluster, model: Path) -> Iterator[Process]:
    """A decode worker of our own, on a port of its own, that joins; killed at the end."""
    address = f"127.0.0.1:{next(ports.free('127.0.0.1'))}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "decode_worker", "--model", str(model), "--mock"),
            *("--served-model-name", MODEL, "--threads", "1", "--local-prefill"),
            *("--port", address.rpartition(":")[2], "--join", running.rpc),
        ],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Process("own", address, child.pid)
    finally:
        child.kill()
        child.wait()


def command(*arguments: str) -> str:
    """What a ``baton`` command prints. Fails unless all is well."""
    done = subprocess.run(
        [sys.executable, "-m", "baton", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def healthy(running: Cluster) -> set[str]:
    """Addresses of the workers that the gateway takes for healthy, by its own table."""
    rows = command("workers", "--gateway", running.rpc).splitlines()[1:]
    return {row.split()[0] for row in rows if " healthy " in row}


async def works(running: Cluster) -> None:
    async with client.connect(running.url) as http:
        answer = await client.whole(http, client.body([1, 2, 3], 5))
    assert answer.done and len(answer.token_ids) == 5, answer


async def test_workers_come_and_go(tiny_llama: Path) -> None:
    with cluster(tiny_llama, "--mock") as running:
        running.until_healthy("p0", "d0")
        of_old = healthy(running)
        with worker(running, tiny_llama) as killed:
            until(lambda: killed.address in healthy(running), START_SECONDS, "it joined")
            await works(running)
            killed.send(signal.SIGKILL)
            at = time.monotonic()
            until(lambda: killed.address not in _members(running), 30.0, "it is gone")
            assert time.monotonic() - at < THREE_BEATS
        with worker(running, tiny_llama) as elsewhere:
            until(lambda: elsewhere.address in healthy(running), START_SECONDS, "it joined")
            assert healthy(running) == of_old | {elsewhere.address}
            until_idle(elsewhere)
            assert "is drained" in command("drain", elsewhere.address)
            assert elsewhere.address not in _members(running)
            assert elsewhere.alive
        await works(running)


async def test_workers_register_again_with_a_gateway_that_was_killed(tiny_llama: Path) -> None:
    with cluster(tiny_llama, "--mock") as running:
        before = running.processes["gateway"]
        workers = {process.address for process in running.workers}
        until(lambda: _members(running) == workers, 30.0, "both joined")
        before.send(signal.SIGKILL)
        until(lambda: running.processes["gateway"].pid != before.pid, START_SECONDS, "it is back")
        until(lambda: healthy(running) == workers, 30.0, "both joined again")
        await works(running)


def _members(running: Cluster) -> set[str]:
    return {worker["address"] for worker in get(running.cluster_url).json()["workers"]}
