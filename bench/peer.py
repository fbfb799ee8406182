"""``python -m bench.peer ROLE BYTES CORE``: one end of every path, told what to do on stdin.

A line of JSON comes, a line of JSON answers:

    sender      {"do": "offer", job}            {where}     and then {"do": "settle"}    {usage}
    receiver    {"do": "read", job, where}      {"seconds", usage}
    both        {"do": "digest", job}           {"digest"}
                {"do": "close"}                 {}          before jobs of another shape

It ends with stdin, so never outlives its parent. CORE: see bench.cores.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from baton import log as logs
from baton.kv.heap import keep_freed_memory
from bench import cores
from bench.job import Job, Memory, Receiver, Sender
from bench.paths import RECEIVERS, SENDERS
from bench.usage import Meter, trim

E = TypeVar("E")  # an end of a path: Sender or Receiver
Answer = dict[str, Any]
Open: TypeAlias = Callable[[Job, Memory], AbstractAsyncContextManager[E]]


class Peer(Generic[E]):
    """One end. Keeps every path open until ``close``, as workers keep their connections."""

    def __init__(self, memory: Memory, side: int, paths: Mapping[str, Open[E]]) -> None:
        self._memory = memory
        self._side = side
        self._paths = paths
        self._open: dict[str, E] = {}
        self._series = AsyncExitStack()

    async def do(self, command: dict[str, Any]) -> Answer:
        match command:
            case {"do": "digest", "job": job}:
                return {"digest": digest(Job(**job), self._memory, self._side)}
            case {"do": "close"}:
                self._open.clear()
                await self._series.aclose()
                return {}
        raise ValueError(f"no such command: {command}")

    async def path(self, job: Job) -> E:
        """This end of the job's path; what is measured can begin at once."""
        if job.path not in self._open:
            opened = self._paths[job.path](job, self._memory)
            self._open[job.path] = await self._series.enter_async_context(opened)
            trim()
        gc.collect()
        return self._open[job.path]


class SenderPeer(Peer[Sender]):
    """Offers, and says afterwards what that took."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, 0, SENDERS)
        self._offered = AsyncExitStack()
        self._meter: Meter | None = None

    async def do(self, command: dict[str, Any]) -> Answer:
        match command:
            case {"do": "offer", "job": told}:
                job = Job(**told)
                path = await self.path(job)
                self._meter = Meter()
                return {**await self._offered.enter_async_context(path.offer(job))}
            case {"do": "settle"}:
                assert self._meter is not None, "something is offered"
                await self._offered.aclose()
                return asdict(self._meter.read())
        return await super().do(command)


class ReceiverPeer(Peer[Receiver]):
    """Reads, and says what that took."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, 1, RECEIVERS)

    async def do(self, command: dict[str, Any]) -> Answer:
        match command:
            case {"do": "read", "job": told, "where": where}:
                job = Job(**told)
                path = await self.path(job)
                meter, start = Meter(), time.perf_counter()
                await path.read(job, where)
                seconds = time.perf_counter() - start
                return {"seconds": seconds, **asdict(meter.read())}
        return await super().do(command)


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
    cores.pin(0, core)
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
