"""The two processes between which bytes are moved, as the benchmark sees them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench import cores
from bench.job import Job

#: Seconds for one job.
_PATIENCE = 120.0
#: Characters per line of JSON.
_LONGEST = 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """What one job took."""

    seconds: float  #: until the last byte was in place, on the receiver's clock
    sender_cpu_s: float
    receiver_cpu_s: float
    sender_peak_bytes: int
    receiver_peak_bytes: int


class PeerFailed(Exception):
    """One of the two processes ended early; it has said why on stderr."""


class Pair:
    """A sender and a receiver. One job at a time."""

    def __init__(self, sender: Process, receiver: Process) -> None:
        self._sender = sender
        self._receiver = receiver

    async def ready(self) -> None:
        """Both have their memory. Raises PeerFailed."""
        for process in (self._sender, self._receiver):
            await answer(process)

    async def move(self, job: Job) -> Run:
        """Raises PeerFailed."""
        told = asdict(job)
        where = await ask(self._sender, {"do": "offer", "job": told})
        took = await ask(self._receiver, {"do": "read", "job": told, "where": where})
        gave = await ask(self._sender, {"do": "settle"})
        return Run(
            took["seconds"], gave["cpu_s"], took["cpu_s"], gave["peak_bytes"], took["peak_bytes"]
        )

    async def require_equal(self, job: Job) -> None:
        """Raise ValueError unless the KV of ``job``, just moved, is the same on both sides."""
        there, here = [
            (await ask(process, {"do": "digest", "job": asdict(job)}))["digest"]
            for process in (self._sender, self._receiver)
        ]
        if there != here:
            raise ValueError(f"what came over {job.path} is not what was sent ({job})")

    async def close_paths(self) -> None:
        """Close every connection; the next job opens its own."""
        for process in (self._receiver, self._sender):
            await ask(process, {"do": "close"})


@asynccontextmanager
async def pair(nbytes: int) -> AsyncIterator[Pair]:
    """Two processes with ``nbytes`` of memory each, on a core each where there are two."""
    processes: list[Process] = []
    try:
        for role, core in zip(("sender", "receiver"), cores.two(), strict=True):
            arguments = (sys.executable, "-m", "bench.peer", role, str(nbytes), str(core))
            processes.append(
                await asyncio.create_subprocess_exec(
                    *arguments, stdin=PIPE, stdout=PIPE, limit=_LONGEST
                )
            )
        both = Pair(*processes)
        await both.ready()
        yield both
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ask(
    process: Process, command: Mapping[str, Any], patience: float = _PATIENCE
) -> dict[str, Any]:
    """Say a line of JSON, wait for a line of JSON. Raises PeerFailed, and TimeoutError when none
    comes in ``patience`` seconds."""
    assert process.stdin is not None, "it was started with a pipe"
    process.stdin.write(json.dumps(command).encode() + b"\n")
    return await answer(process, patience)


async def answer(process: Process, patience: float = _PATIENCE) -> dict[str, Any]:
    """The next line that it says; see ``ask``."""
    assert process.stdout is not None, "it was started with a pipe"
    async with asyncio.timeout(patience):
        line = await process.stdout.readline()
    if not line:
        raise PeerFailed(f"a process of the benchmark ended with status {await process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer
