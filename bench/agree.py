"""``python -m bench.agree``: the simulator beside a real cluster with the same cost model.

A gateway and mock workers are started (``baton up --mock``) and asked at random (Poisson); the same
requests at the same times are simulated. A line per fleet, rate and number: real, simulated, and
how far the second is off. What the cost model does not know, messages and the gateway's own work,
is taken from what one request at a time takes beyond it (``request_s``).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console

from baton.settings import UpSettings
from bench import overload, records
from bench.costs import Costs
from bench.records import Param, Record
from bench.simulate.fleet import Fleet, Setup, simulate
from bench.simulate.jobs import Job, drawn
from bench.simulate.machine import MODEL
from bench.simulate.outcome import Outcome, Slo

PROMPT, OUTPUT = overload.PROMPT, 24
#: Of the mock; the prefill flag is among ``overload.FLAGS``.
_COSTS = Costs(step_s=0.02, prefill_token_s=overload.PREFILL_US / 1e6, decode_s=5e-4)
_FLAGS = ("--mock-step-ms", "20", "--mock-decode-us", "500", "--num-blocks", "2048")
_SLO = Slo(ttft=0.3, tpot=0.04)
_ALONE = 8  #: requests, one at a time
_FAR = httpx.Timeout(60.0)


@dataclass(frozen=True, slots=True)
class Real:
    """A real fleet, running."""

    client: httpx.AsyncClient
    model: str
    rng: random.Random  #: of prompts: none is cached

    async def run(self, jobs: Sequence[Job]) -> Outcome:
        """Every request at its time."""
        outcome, began = Outcome(asked=len(jobs), span=jobs[-1].at), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                await asyncio.sleep(max(0.0, began + job.at - time.monotonic()))
                group.create_task(self._ask(job, outcome))
        return outcome

    async def _ask(self, job: Job, outcome: Outcome) -> None:
        prompt = self.rng.choices(range(32, 127), k=job.tokens)
        body = {"model": self.model, "prompt": prompt, "max_tokens": job.output}
        body |= {"ignore_eos": True, "stream": True}
        sent, ticks = time.monotonic(), list[float]()
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if answer.status_code == 200 and '"choices"' in line:
                    ticks.append(time.monotonic())
        if answer.status_code == 200 and ticks:
            tpot = (ticks[-1] - ticks[0]) / max(1, job.output - 1)
            outcome.answered(job.at, ticks[0] - sent, tpot)
        else:
            outcome.refused[str(answer.status_code)] += 1


async def beside(fleet: Fleet, rates: Sequence[float], count: int) -> list[Record]:
    """Both, at each rate."""
    sizes = ("--prefill", str(fleet.prefill), "--decode", str(fleet.decode))
    alone = [Job(n, 0.5 * n, PROMPT, OUTPUT) for n in range(_ALONE)]
    given = {"local_prefill_queue": 0, "first_token_timeout": overload.DEADLINE}
    settings = UpSettings.model_validate({"model": MODEL, **given})
    setup = Setup(fleet=fleet, settings=settings, costs=_COSTS, blocks=2048, longest=4096)
    found = list[Record]()
    async with (
        overload.fleet((*overload.FLAGS, *_FLAGS, *sizes)) as running,
        httpx.AsyncClient(base_url=running.url, timeout=_FAR) as client,
    ):
        real = Real(client, overload.NAME, random.Random(0))
        await real.run(alone)  # warms up
        beyond = median((await real.run(alone)).ttft) - median(simulate(setup, alone).ttft)
        setup = replace(setup, costs=replace(_COSTS, request_s=max(0.0, beyond)))
        for rate in rates:
            jobs = list(drawn(alone[:1], count, rate, 1.0, seed=1))
            measured = await real.run(jobs)
            params: dict[str, Param] = {"fleet": str(fleet), "offered, 1/s": rate}
            found += _compare(measured, simulate(setup, jobs), params)
    return found


def _compare(real: Outcome, simulated: Outcome, params: dict[str, Param]) -> list[Record]:
    wanted = ("TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "goodput")
    theirs = {record.name: record for record in simulated.records(_SLO, {})}
    made = list[Record]()
    for one in real.records(_SLO, {}):
        if one.name in wanted:
            line: dict[str, Param] = {**params, "number": f"{one.name}, {one.unit}"}
            value = theirs[one.name].value
            made.append(Record("real", one.value, "ratio", line))
            made.append(Record("simulated", value, "ratio", line))
            made.append(Record("off", value / one.value - 1 if one.value else 0.0, "ratio", line))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a number is more than 10 % off."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.agree",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleets", nargs="+", default=["1:1", "2:1"], help="P:D (1:1 2:1)")
    parser.add_argument("--rates", nargs="+", type=float, default=[4.0, 8.0, 12.0])
    parser.add_argument("--requests", type=int, default=200, help="at each rate (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the records")
    asked = parser.parse_args(argv)
    found = list[Record]()
    for name in asked.fleets:
        prefill, _, decode = name.partition(":")
        fleet = Fleet(prefill=int(prefill), decode=int(decode))
        found += asyncio.run(beside(fleet, asked.rates, asked.requests))
    Console().print(records.table("The simulator beside mock workers", found))
    if asked.json is not None:
        records.write(asked.json, found)
    return 1 if any(r.name == "off" and abs(r.value) > 0.1 for r in found) else 0


if __name__ == "__main__":
    sys.exit(main())
