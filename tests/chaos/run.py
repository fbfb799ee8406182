"""A fleet under load, struck by a schedule of faults; afterwards, its books."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tests.cases import Case
from tests.chaos.faults import KINDS, Fault
from tests.chaos.load import Load, Outcome, undisturbed
from tests.chaos.schedule import Strike
from tests.e2e.cluster import migrations
from tests.fleets import Fleet, Resources

#: Seconds until a struck process must be itself again, and all books balance.
HEAL_SECONDS, SETTLE_SECONDS = 120.0, 60.0
#: Seconds between two looks at what processes hold.
LOOK_SECONDS = 10.0
_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault as it came: times are those of ``time.monotonic``."""

    strike: Strike
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes that are never killed hold, at a time."""

    at: float
    resources: dict[str, Resources]


@dataclass(slots=True)
class Result:
    """What came of it all."""

    began: float
    ended: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    #: Attempts placed again, by what ended the one before, as the gateways that live know it.
    migrations: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)  #: of workers and gateways, when all was over
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """How much load there is, at least: ``streams`` in all, ``clients`` at a time, for
    ``seconds``."""

    streams: int
    clients: int
    seconds: float = 0.0


class Chaos:
    """One run against one fleet."""

    def __init__(self, fleet: Fleet, workers: int, strikes: Sequence[Strike]) -> None:
        self._fleet = fleet
        self._workers = workers
        self._strikes = strikes
        self._disturbed: set[str] = set()
        self._result = Result(time.monotonic())

    async def run(
        self, work: Sequence[Case], demand: Demand, seed: int, *, exact: bool = True
    ) -> Result:
        """Learn what is right, then strike until schedule, streams and time are over."""
        fleet, result = self._fleet, self._result
        await fleet.until_healthy(self._workers, HEAL_SECONDS)
        expected = await undisturbed(fleet.urls["g0"], work, demand.clients)
        load = Load(list(fleet.urls.values()), expected, seed, exact=exact)
        result.began, result.outcomes = time.monotonic(), load.outcomes
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            loading = group.create_task(load.run(demand.clients, demand.streams, enough))
            await self._strike_all()
            await asyncio.sleep(result.began + demand.seconds - time.monotonic())
            enough.set()
            await loading
            watching.cancel()
        result.ended, result.deaths = time.monotonic(), fleet.journal.deaths
        await self._settle()
        return result

    # -- faults ----------------------------------------------------------------------------------

    async def _strike_all(self) -> None:
        async with asyncio.TaskGroup() as striking:
            for strike in self._strikes:
                await asyncio.sleep(self._result.began + strike.at - time.monotonic())
                while not self._may(strike):
                    await asyncio.sleep(_LOOK)
                if strike.disturbs:
                    self._disturbed.add(strike.target)
                fault = KINDS[strike.kind](self._fleet, strike.target)
                striking.create_task(self._strike(strike, fault))

    def _may(self, strike: Strike) -> bool:
        """Whether the target is there to be struck, and another of its kind is well then; of
        etcd there is one."""
        letter = strike.target[0]
        if letter == "e":
            return strike.target not in self._disturbed
        ready = {name for name in self._fleet.ready if name[0] == letter} - self._disturbed
        return strike.target in ready and (len(ready) > 1 or not strike.disturbs)

    async def _strike(self, strike: Strike, fault: Fault) -> None:
        """Let it happen, to the end: until the target is well again in everybody's eyes."""
        note = f"{strike.kind}: {strike.target}"
        self._fleet.journal.log("chaos", note)
        began = time.monotonic()
        await fault.apply()
        await asyncio.sleep(strike.seconds)
        await fault.undo()
        self._result.struck.append(Struck(strike, began, time.monotonic()))
        if strike.disturbs:
            if strike.target[0] != "e":  # etcd is well once it is started
                await self._fleet.until_well(strike.target, HEAL_SECONDS)
            self._disturbed.discard(strike.target)
        self._fleet.journal.log("chaos", f"over: {note}")

    # -- what is left ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """See from time to time what those hold that are never killed."""
        elders = sorted(name for name in self._fleet.ready if name.endswith("0"))
        while True:
            held = {name: self._fleet.resources(name) for name in elders}
            self._result.samples.append(Sample(time.monotonic(), held))
            await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self) -> None:
        """Everybody is well, and nobody holds anything any more."""
        await self._fleet.until_healthy(self._workers, HEAL_SECONDS)
        try:
            await self._fleet.require_integrity(SETTLE_SECONDS)
        except AssertionError as error:
            self._result.leaks.append(str(error))
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            for name, admin in self._fleet.admins.items():
                seen = (await http.get(f"{admin}/cluster")).json()["gateway"]
                if seen["queued_tokens"] or seen["waiting_requests"]:
                    self._result.leaks.append(f"{name}: {seen}")
                self._result.migrations.update(
                    migrations((await http.get(f"{admin}/metrics")).text)
                )
