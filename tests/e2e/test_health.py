"""A worker's event loop answers while its engine computes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e import client
from tests.e2e.cluster import Cluster

LIMIT = 0.050
PROBES = 100
ROUNDS = 5


async def _late(addresses: Sequence[str]) -> list[float]:
    """Of 100 health checks of each, asked in turn, over one connection each: the seconds of the
    slowest but one."""
    took: list[list[float]] = [[] for _ in addresses]
    async with AsyncExitStack() as stack:
        stubs = []
        for address in addresses:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stubs.append(health_pb2_grpc.HealthStub(channel))
            await stubs[-1].Check(health_pb2.HealthCheckRequest(), timeout=60)
        for _ in range(PROBES):
            for stub, seconds in zip(stubs, took, strict=True):
                began = time.perf_counter()
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
                seconds.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)
    return [sorted(seconds)[int(0.99 * PROBES) - 1] for seconds in took]


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
    """99 of 100 probes within the limit, on both workers, beside what a gateway needs for the same
    that does next to nothing: the machine is shared. In the best of five rounds, at most."""
    enough = asyncio.Event()
    computing = asyncio.create_task(_keep_computing(enough, demo.url, 1800))
    names = [worker.name for worker in demo.workers]
    best = dict.fromkeys(names, math.inf)
    try:
        for _ in range(ROUNDS):
            *late, idle = await _late([*(worker.address for worker in demo.workers), demo.rpc])
            print([f"{1000 * p99:.1f} ms" for p99 in (*late, idle)])
            best = {n: min(best[n], p99 - idle) for n, p99 in zip(names, late, strict=True)}
            if max(best.values()) < LIMIT:
                break
    finally:
        enough.set()
        computed = await computing
    assert computed > 0
    assert max(best.values()) < LIMIT, best
