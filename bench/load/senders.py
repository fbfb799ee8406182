"""Has a level's requests sent by processes of their own, and writes down what they see."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from bench.load.raw import OK, Level, Writer
from bench.load.workload import Endpoint
from bench.trace import Request

#: Seconds from "go" to the first request: the word has to get around.
_HEADWAY = 0.2
#: Seconds between looks at the workers.
_LOOK = 0.1
#: Bytes of the longest line that a sender may write.
_LINE = 2**26


class SenderFailed(Exception):
    """A sender ended before its work was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Senders:
    """How a level is sent."""

    endpoint: Endpoint
    processes: int
    timeout: float  #: seconds for a whole answer
    cluster: str | None = None  #: URL of a Baton gateway's /cluster, to be looked at meanwhile

    async def run(
        self,
        level: Level,
        asked: Sequence[Request],
        out: Writer,
        progress: Callable[[bool], None],
    ) -> None:
        """Returns when all is answered; ``progress`` is told of each answer whether it is good.

        Raises groups of SenderFailed, OSError (a process cannot be started) and aiohttp.ClientError
        (the cluster cannot be looked at).
        """
        count = self.processes
        if level.kind == "concurrency":
            count = min(count, int(level.value))
        shares = [share for first in range(count) if (share := asked[first::count])]
        out.level(level)
        senders: list[Process] = []
        try:
            async with asyncio.TaskGroup() as group:
                for share in shares:
                    senders.append(await _start())
                    group.create_task(self._tell(senders[-1], share))
                for sender in senders:
                    await _ready(sender)
                looking = self.cluster and group.create_task(_look(self.cluster, out))
                start = time.monotonic() + _HEADWAY
                slots = _slots(level, len(senders))
                following = [
                    _follow(sender, start, each, out, progress)
                    for sender, each in zip(senders, slots, strict=True)
                ]
                await asyncio.gather(*following)
                if looking:
                    looking.cancel()
        finally:
            for sender in senders:
                if sender.returncode is None:
                    sender.kill()
                await sender.wait()

    async def _tell(self, sender: Process, share: Sequence[Request]) -> None:
        head = {"address": self.endpoint.address, "timeout": self.timeout, "count": len(share)}
        try:
            await _put(sender, head)
            for one in share:
                body, headers = self.endpoint.body(one), self.endpoint.headers(one)
                await _put(sender, {"due": one.at, "headers": headers, "body": body})
        except ConnectionError:
            return  # it has ended: whoever waits for its word says so


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load.sender"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE,
    )


def _slots(level: Level, senders: int) -> list[int | None]:
    """How many requests at once each may have; None: whatever is due."""
    if level.kind != "concurrency":
        return [None] * senders
    each, over = divmod(int(level.value), senders)
    return [each + (number < over) for number in range(senders)]


async def _put(sender: Process, said: dict[str, object]) -> None:
    assert sender.stdin is not None
    sender.stdin.write(json.dumps(said).encode() + b"\n")
    await sender.stdin.drain()


async def _line(sender: Process) -> str:
    """Empty at the end."""
    assert sender.stdout is not None
    return (await sender.stdout.readline()).decode()


async def _ready(sender: Process) -> None:
    if not await _line(sender):
        raise SenderFailed(f"a sender ended with {await sender.wait()} before it was ready")


async def _follow(
    sender: Process,
    start: float,
    slots: int | None,
    out: Writer,
    progress: Callable[[bool], None],
) -> None:
    await _put(sender, {"start": start, "concurrency": slots})
    while text := await _line(sender):
        out.write(text)
        answer = json.loads(text).get("answer")
        if answer is not None:
            progress(answer["status"] == OK)
    if (status := await sender.wait()) != 0:
        raise SenderFailed(f"a sender ended with {status} in the middle of its work")


async def _look(cluster: str, out: Writer) -> None:
    """What each worker has to do: prompt tokens waiting for prefill, sequences for decode."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        while True:
            async with session.get(cluster) as answer:
                said = await answer.json()
            work: dict[str, list[float]] = {"prefill": [], "decode": []}
            for worker in said["workers"]:
                load = worker.get("load", {})
                if "prefill" in worker.get("roles", ()):
                    work["prefill"].append(load["queued_tokens"])
                if "decode" in worker.get("roles", ()):
                    work["decode"].append(load["running"] + load["waiting"])
            out.put({"work": work})
            await asyncio.sleep(_LOOK)
