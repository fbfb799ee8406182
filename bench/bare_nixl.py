"""What NIXL can do at best: the same bytes in one READ, without Baton around it.

``bare nixl``     of one stretch of memory
``nixl blocks``   of the same blocks as a hand-off, which lie scattered on both sides
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from baton.errors import BatonError, HandoffFailed
from baton.identity import new_instance_id
from baton.kv.nixl import Unusable
from baton.kv.nixl.api import HOST, NixlAgent, Stretch, load
from bench.job import Job, Memory, Receiver, Sender, Where

_PAUSE = 0.5e-3  # seconds

#: What is read, or into what: of a job, on one side, of memory at an address.
Stretches: TypeAlias = Callable[[Job, int, int], list[Stretch]]


class BareNixlSender:
    """Answers the peer that connects, and has nothing else to do."""

    def __init__(self, agent: NixlAgent, memory: Memory) -> None:
        self._agent = agent
        self._address = memory.ctypes.data

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        over = threading.Event()
        answering = asyncio.create_task(asyncio.to_thread(self._answer, over))
        try:
            yield {"agent": self._agent.get_agent_metadata().hex(), "address": str(self._address)}
        finally:
            over.set()
            await answering

    def _answer(self, over: threading.Event) -> None:
        while not over.wait(_PAUSE):
            self._agent.get_new_notifs()


class BareNixlReceiver:
    """Reads straight into memory, on a thread that blocks."""

    def __init__(self, agent: NixlAgent, memory: Memory, stretches: Stretches) -> None:
        self._agent = agent
        self._address = memory.ctypes.data
        self._stretches = stretches
        self._peer = ""

    async def read(self, job: Job, where: Where) -> None:
        await asyncio.to_thread(self._read, job, where)

    def _read(self, job: Job, where: Where) -> None:
        if not self._peer:
            name = self._agent.add_remote_agent(bytes.fromhex(where["agent"]))
            self._peer = name.decode() if isinstance(name, bytes) else name
        mine = self._stretches(job, 1, self._address)
        theirs = self._stretches(job, 0, int(where["address"]))
        here = self._agent.get_xfer_descs(mine, HOST)
        there = self._agent.get_xfer_descs(theirs, HOST)
        handle = self._agent.initialize_xfer("READ", here, there, self._peer)
        state = self._agent.transfer(handle)
        while state == "PROC":
            time.sleep(_PAUSE)
            state = self._agent.check_xfer_state(handle)
        handle.release()
        if state != "DONE":
            raise HandoffFailed(f"NIXL ended the READ with {state}")


@asynccontextmanager
async def bare_nixl_sender(_: Job, memory: Memory) -> AsyncIterator[Sender]:
    yield BareNixlSender(await _agent(memory), memory)


@asynccontextmanager
async def bare_nixl_receiver(_: Job, memory: Memory) -> AsyncIterator[Receiver]:
    yield BareNixlReceiver(await _agent(memory), memory, one_stretch)


@asynccontextmanager
async def nixl_blocks_receiver(_: Job, memory: Memory) -> AsyncIterator[Receiver]:
    yield BareNixlReceiver(await _agent(memory), memory, every_block)


def one_stretch(job: Job, _: int, address: int) -> list[Stretch]:
    return [(address, job.nbytes, 0)]


def every_block(job: Job, side: int, address: int) -> list[Stretch]:
    """The blocks of that side's table, layer by layer."""
    shape, table = job.shape, job.table(side)
    nbytes = shape.block_bytes
    return [
        (address + (layer * len(table) + block) * nbytes, nbytes, 0)
        for layer in range(shape.layers)
        for block in table
    ]


async def _agent(memory: Memory) -> NixlAgent:
    """Raises BatonError where there is none."""

    def make() -> NixlAgent:
        try:
            agent = load().make_agent(f"bare-{new_instance_id()}")
        except Unusable as error:
            raise BatonError(str(error)) from error
        agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], HOST)
        return agent

    return await asyncio.to_thread(make)
