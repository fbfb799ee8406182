"""A worker's event loop answers while its engine computes."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e import client
from tests.e2e.cluster import Cluster

LIMIT = 0.050
PROBES = 100
ROUNDS = 3


async def _round_trips(address: str) -> list[float]:
    """Seconds of PROBES health checks over one connection, sorted."""
    took = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        for _ in range(PROBES):
            began = time.perf_counter()
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
    return sorted(took)


async def _keep_computing(enough: asyncio.Event, url: str, length: int) -> int:
    """Long prompts, two at a time and never the same, until told to stop; how many."""
    count = 0
    async with client.connect(url) as connection:
        while not enough.is_set():
            prompts = [[(7 * i + j + count) % 200 + 20 for j in range(length)] for i in range(2)]
            await asyncio.gather(
                *(client.tokens(connection, client.body(prompt, 20)) for prompt in prompts)
            )
            count += len(prompts)
    return count


async def test_health_within_50_ms_while_the_engine_computes(demo: Cluster) -> None:
    """99 of 100 probes within the limit, on both workers, in the best of three rounds: the
    machine is shared, and a round may meet another process's burst."""
    enough = asyncio.Event()
    computing = asyncio.create_task(_keep_computing(enough, demo.url, 1800))
    try:
        worst: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for worker in demo.workers:
                took = await _round_trips(worker.address)
                worst.setdefault(worker.name, []).append(took[int(0.99 * PROBES) - 1])
    finally:
        enough.set()
        computed = await computing
    print({name: [f"{1000 * p99:.1f} ms" for p99 in p99s] for name, p99s in worst.items()})
    assert computed > 0
    assert all(min(p99s) < LIMIT for p99s in worst.values()), worst
