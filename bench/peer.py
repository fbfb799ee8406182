"""``python -m bench.peer ROLE BYTES CORE``: one end of every path, told what to do on stdin.

A line of JSON comes, a line of JSON answers:

    sender      {"do": "offer", job}            {where}     and then {"do": "settle"}    {usage}
    receiver    {"do": "read", job, where}      {"seconds", usage}
    both        {"do": "digest", job}           {"digest"}
                {"do": "close"}                 {}          before jobs of another shape

It ends with stdin, so never outlives its parent. CORE -1: the kernel places it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import zlib
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from baton import log as logs
from baton.kv.heap import keep_freed_memory
from bench.job import Job, Memory, Receiver, Sender
from bench.paths import RECEIVERS, SENDERS
from bench.usage import Meter, trim

Answer = dict[str, Any]


class SenderPeer:
    """Keeps every path open until ``close``, as workers keep their connections."""

    side = 0

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._open: dict[str, Sender] = {}
        self._series = AsyncExitStack()
        self._offered = AsyncExitStack()
        self._meter: Meter | None = None

    async def do(self, command: dict[str, Any]) -> Answer:
        match command:
            case {"do": "offer", "job": job}:
                return await self._offer(Job(**job))
            case {"do": "settle"}:
                return await self._settle()
            case {"do": "digest", "job": job}:
                return {"digest": digest(Job(**job), self._memory, self.side)}
            case {"do": "close"}:
                self._open.clear()
                await self._series.aclose()
                return {}
        raise ValueError(f"no such command: {command}")

    async def _offer(self, job: Job) -> Answer:
        if job.path not in self._open:
            opened = SENDERS[job.path](job, self._memory)
            self._open[job.path] = await self._series.enter_async_context(opened)
            trim()
        gc.collect()
        self._meter = Meter()
        return {**await self._offered.enter_async_context(self._open[job.path].offer(job))}

    async def _settle(self) -> Answer:
        assert self._meter is not None, "something is offered"
        await self._offered.aclose()
        return asdict(self._meter.read())


class ReceiverPeer:
    """Keeps every path open until ``close``, as workers keep their connections."""

    side = 1

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._open: dict[str, Receiver] = {}
        self._series = AsyncExitStack()

    async def do(self, command: dict[str, Any]) -> Answer:
        match command:
            case {"do": "read", "job": job, "where": where}:
                return await self._read(Job(**job), where)
            case {"do": "digest", "job": job}:
                return {"digest": digest(Job(**job), self._memory, self.side)}
            case {"do": "close"}:
                self._open.clear()
                await self._series.aclose()
                return {}
        raise ValueError(f"no such command: {command}")

    async def _read(self, job: Job, where: dict[str, str]) -> Answer:
        if job.path not in self._open:
            opened = RECEIVERS[job.path](job, self._memory)
            self._open[job.path] = await self._series.enter_async_context(opened)
            trim()
        gc.collect()
        meter = Meter()
        start = time.perf_counter()
        await self._open[job.path].read(job, where)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, **asdict(meter.read())}


def digest(job: Job, memory: Memory, side: int) -> int:
    """Of a hand-off's KV in the order of its tokens: equal on both sides when it has arrived."""
    pool = memory[: job.nbytes].reshape(job.shape.layers, -1, job.shape.block_bytes)
    table, value = job.table(side), 0
    for layer in pool:
        for block in table:
            value = zlib.crc32(layer[block], value)
    return value


async def main(role: str, nbytes: int, core: int) -> None:
    logs.configure("warning", "console", f"bench {role}")  # to stderr
    keep_freed_memory()
    if core >= 0:
        os.sched_setaffinity(0, {core})
    memory: Memory = np.full(nbytes, 1, dtype=np.uint8)
    peer: SenderPeer | ReceiverPeer
    if role == "sender":
        memory[:] = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
        peer = SenderPeer(memory)
    else:
        peer = ReceiverPeer(memory)
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await peer.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
