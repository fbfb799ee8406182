"""Streams that never cease, and random faults among them: to whom, when, and what came of it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx

from tests.cases import Case
from tests.e2e import client
from tests.e2e.cluster import Process
from tests.fleets import Fleet, cut_links
from tests.lines import TcpLine

STREAMS = 8  #: at a time
BATCH = 10  #: faults between two looks at the books
#: A stream that takes longer hangs. The gateway gives a lost one up sooner (--retry-budget).
HANG_SECONDS = 90.0
SETTLE_SECONDS = 30.0
RATE = 1e6  #: bytes per second of a slow line
_LOOK = 0.02

#: Faults that the transport of the hand-off makes no difference to.
COMMON = (
    "kill prefill",
    "kill decode",
    "stop prefill",
    "stop decode",
    "cut all",
    "slow all",
    "partition",
)
#: And those of the connections that carry KV.
OWN: dict[str, tuple[str, ...]] = {
    "grpc": (
        *("cut kv", "slow kv", "drop bytes", "repeat bytes", "truncate bytes", "corrupt bytes"),
    ),
    "shm": ("cut link",),
    "nixl": (),  # it has none
}


@dataclass(slots=True)
class Tally:
    """What happened."""

    faults: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)  #: each fault, once over, with its victim
    streams: int = 0
    refused: int = 0  #: at admission, as no worker was there
    longest_gap: tuple[float, str] = (0.0, "")  #: seconds without news, and when that ended
    longest_stream: float = 0.0  #: seconds

    def struck(self, kind: str, victim: str) -> None:
        self.faults[kind] += 1
        self.log.append(f"{time.strftime('%H:%M:%S')} {kind}: {victim}")


def _refused(answer: client.Answer) -> bool:
    """Before anything was begun: a request may be sent again, and is."""
    return bool(answer.error and answer.error["code"] == "no_worker" and not answer.token_ids)


class Campaign:
    """Faults against one fleet, in batches; between them all is quiet and must be in order."""

    def __init__(self, fleet: Fleet, transport: str, work: Sequence[Case], seed: int) -> None:
        self.tally = Tally()
        self._fleet = fleet
        self._work = work
        self._rng = random.Random(seed)
        self._kinds = [*COMMON, *OWN[transport]]
        self._deck: list[str] = []
        self._expected: dict[Case, list[int]] = {}

    async def run(self, faults: int, workers: int, look: Callable[[int], Awaitable[None]]) -> Tally:
        """So many faults; ``look`` is called when all is quiet, with the faults so far."""
        async with client.connect(self._fleet.urls["g0"]) as http:
            await self._undisturbed(http)
            done = 0
            await self._settle(workers)
            await look(done)
            while done < faults:
                batch = min(BATCH, faults - done)
                await self._batch(http, batch)
                done += batch
                await self._settle(workers)
                await look(done)
        return self.tally

    async def _undisturbed(self, http: httpx.AsyncClient) -> None:
        """Learn the tokens of every case."""
        places = asyncio.Semaphore(STREAMS)

        async def learn(case: Case) -> None:
            async with places:
                self._expected[case] = await client.tokens(http, case.body)

        await asyncio.gather(*map(learn, self._work))

    async def _settle(self, workers: int) -> None:
        await self._fleet.until_healthy(workers, 60.0)
        await self._fleet.require_integrity(SETTLE_SECONDS)

    async def _batch(self, http: httpx.AsyncClient, faults: int) -> None:
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(self._client(http, enough))
            async with asyncio.TaskGroup() as striking:
                for _ in range(faults):
                    await asyncio.sleep(0.2 + self._rng.expovariate(1.0))
                    striking.create_task(self._strike(await self._draw()))
            enough.set()

    # -- streams ---------------------------------------------------------------------------------

    async def _client(self, http: httpx.AsyncClient, enough: asyncio.Event) -> None:
        while not enough.is_set():
            case, began = self._rng.choice(self._work), time.monotonic()
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    while _refused(answer := await self._follow(http, case)):
                        self.tally.refused += 1
                        await asyncio.sleep(0.5)
            except TimeoutError:
                raise AssertionError(f"{case} hangs") from None
            assert answer.done and answer.error is None, (case, answer)
            assert answer.token_ids == self._expected[case], case
            self.tally.streams += 1
            took = time.monotonic() - began
            self.tally.longest_stream = max(self.tally.longest_stream, took)

    async def _follow(self, http: httpx.AsyncClient, case: Case) -> client.Answer:
        """One stream to its end, and the longest that nothing came of it."""
        answer, last = client.Answer(), time.monotonic()
        async for current in client.stream(http, case.body):
            answer, now = current, time.monotonic()
            if now - last > self.tally.longest_gap[0]:
                self.tally.longest_gap = now - last, time.strftime("%H:%M:%S")
            last = now
        return answer

    # -- faults ----------------------------------------------------------------------------------

    async def _draw(self) -> tuple[str, Process]:
        """The next kind, each as often as the others, and a victim for it.

        The first worker of each kind is never killed, so that what it leaks adds up.
        """
        if not self._deck:
            self._deck = self._rng.sample(self._kinds, len(self._kinds))
        kind = self._deck.pop()
        letter = "d" if kind.endswith("decode") else "p"
        elder = f"{letter}0" if kind.startswith("kill") else ""
        while True:
            ready = sorted(self._fleet.ready.items())
            victims = [p for n, p in ready if n[0] == letter and n != elder and not p.stopped]
            if victims:
                return kind, self._rng.choice(victims)
            await asyncio.sleep(0.1)

    async def _strike(self, drawn: tuple[str, Process]) -> None:
        """Let it happen, and to the end; what finds nothing to hit yet waits until it does."""
        kind, victim = drawn
        self._fleet.journal.log("fault", f"{kind}: {victim.name}")
        seconds = self._rng.uniform(0.5, 6.0)
        what, _, whom = kind.partition(" ")
        if what == "kill":
            victim.send(signal.SIGKILL)
        elif what == "stop":
            victim.send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            if victim.alive:
                victim.send(signal.SIGCONT)
        elif what in ("slow", "partition"):
            rate = RATE if what == "slow" else 0.0
            with self._fleet.lines[victim.name].slow(rate, kv_only=whom == "kv"):
                await asyncio.sleep(seconds)
        elif what == "cut":
            while not await self._cut(victim.name, whom):
                await asyncio.sleep(_LOOK)
        else:
            await self._tamper(self._fleet.lines[victim.name], what)
        self.tally.struck(kind, victim.name)
        self._fleet.journal.log("fault", f"over: {kind}: {victim.name}")

    async def _cut(self, name: str, whom: str) -> int:
        """Connections that were open, and are not any more."""
        if whom != "link":
            return self._fleet.lines[name].cut(kv_only=whom == "kv")
        process = self._fleet.ready.get(name)
        return await asyncio.to_thread(cut_links, process) if process else 0

    async def _tamper(self, line: TcpLine, what: str) -> None:
        """With the next payload that is under way."""
        while line.damage:
            await asyncio.sleep(_LOOK)
        mine = line.damage = self._damage(what)
        while line.damage is mine:
            await asyncio.sleep(_LOOK)

    def _damage(self, what: str) -> Callable[[bytes], bytes]:
        """Of bytes within the payload of a block."""

        def damage(data: bytes) -> bytes:
            start, end = sorted(self._rng.sample(range(len(data)), 2))
            match what:
                case "drop":
                    return data[:start] + data[end:]
                case "repeat":
                    return data[:end] + data[start:]
                case "truncate":
                    return data[:start]
                case "corrupt":
                    return data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]
            raise ValueError(what)

        return damage
