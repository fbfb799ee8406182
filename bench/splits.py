"""``python -m bench.splits``: the planner's choice beside real fleets of every split.

So many mock workers are split in each way (and colocated), under loads that want different splits.
What a fleet serves is the rate at which 90 % of all requests still keep both SLOs: simulated, as
the planner finds it, and real, between the highest rate tried that keeps them and the next. The
planner's choice is to serve as much as the best real split, or up to 5 % less.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import picture, records
from bench.arguments import at_least, positive
from bench.calibrate import calibrated
from bench.costs import Costs
from bench.load import statistics
from bench.load.workload import Lengths
from bench.plan.search import Goal, Search
from bench.real import Kind, Running, drawn, running, short
from bench.records import Param, Record
from bench.simulate.fleet import Fleet
from bench.simulate.jobs import Job
from bench.simulate.outcome import Slo

#: Slow, so that two cores run the processes of it.
_COSTS = Costs(step_s=0.02, prefill_token_s=0.001, decode_s=0.003, context_token_s=2e-6)
_GOAL = Goal(slo=Slo(ttft=0.8, tpot=0.05), share=0.9)
_WITHIN = 0.05
#: Of a rate, how much the next one tried is off; and how many are tried.
_STEP, _TRIES = 0.1, 5


@dataclass(frozen=True, slots=True)
class Load:
    prompt: Lengths
    output: Lengths

    def at(self, rate: float, seconds: float, seed: int = 5) -> list[Job]:
        """The same requests in the same rhythm, at any rate."""
        count = max(2, round(rate * seconds))
        return drawn(count, rate, self.prompt, self.output, seed)


LOADS = {
    "balanced": Load(Lengths(60, 140), Lengths(16, 48)),
    "long prompts": Load(Lengths(150, 350), Lengths(6, 18)),
    "long answers": Load(Lengths(20, 60), Lengths(40, 120)),
}


def crossing(seen: Sequence[tuple[float, float]], share: float) -> float:
    """The rate at which so large a share is attained, of (rate, share) as they were tried: on the
    line from the highest rate up to which all attain it to the next one. Without one below it is 0,
    without one above the highest tried."""
    low, above = (0.0, 1.0), None
    for rate, attained in sorted(seen):
        if attained < share:
            above = (rate, attained)
            break
        low = (rate, attained)
    if above is None or not low[0]:
        return low[0]
    part = (low[1] - share) / (low[1] - above[1])
    return low[0] + part * (above[0] - low[0])


async def served(fleet: Running, load: Load, guess: float, seconds: float) -> float:
    """What a real fleet serves: upwards or downwards from a guess until that is between two rates
    tried."""
    slo = statistics.Slo(ttft=_GOAL.slo.ttft, tpot=_GOAL.slo.tpot)
    seen, rate = list[tuple[float, float]](), guess
    for seed in range(_TRIES):
        measured = await fleet.run(load.at(rate, seconds), seed)
        seen.append((rate, float(measured.met(slo).mean())))
        kept = [attained >= _GOAL.share for _, attained in seen]
        if any(kept) and not all(kept):
            break
        rate *= 1 + _STEP if kept[-1] else 1 - _STEP
    return crossing(seen, _GOAL.share)


async def compare(name: str, workers: int, seconds: float) -> list[Record]:
    """Every split under one load."""
    load, kind = LOADS[name], Kind(costs=_COSTS)
    middle = tuple((of.least + of.most) // 2 for of in (load.prompt, load.output))
    pair = Fleet(prefill=1, decode=1)
    async with running(kind, pair) as fleet:
        known = await calibrated(fleet, kind, pair, *middle)
    setup = known.setup(Fleet(colocated=workers))
    search = Search(setup, _GOAL, lambda rate: load.at(rate, seconds))  # the very same requests
    chosen = search.best(workers)
    found = list[Record]()
    for size in _splits(workers):
        simulated = search.rate(size).rate
        async with running(kind, size) as fleet:
            await fleet.run(load.at(simulated / 2, 3.0), seed=99)  # warms up
            real = await served(fleet, load, simulated, seconds)
        params: dict[str, Param] = {"load": name, "fleet": short(size)}
        found.append(Record("simulated", simulated, "1/s", params))
        found.append(Record("real", real, "1/s", params))
        found.append(Record("chosen", int(size == chosen.fleet), "ratio", params))
    return found


def _splits(workers: int) -> Iterator[Fleet]:
    for prefill in range(1, workers):
        yield Fleet(prefill=prefill, decode=workers - prefill)
    yield Fleet(colocated=workers)


def missed(found: Sequence[Record]) -> dict[str, float]:
    """By load: by how much the best real fleet serves more than the chosen one."""
    loads = dict.fromkeys(str(record.params["load"]) for record in found)
    missed = {}
    for load in loads:
        of = [record for record in found if record.params["load"] == load]
        real = {r.params["fleet"]: r.value for r in of if r.name == "real"}
        (chosen,) = (r.params["fleet"] for r in of if r.name == "chosen" and r.value)
        missed[load] = max(real.values()) / real[chosen] - 1 if real[chosen] else 1.0
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 where a choice is more than 5 % below the best."""
    asked = _parser().parse_args(argv)
    found = list[Record]()
    for name in asked.loads:
        found += asyncio.run(compare(name, asked.workers, asked.seconds))
    title = f"What {asked.workers} mock workers serve in time"
    Console().print(records.table(title, found))
    short = missed(found)
    for load, by in short.items():
        print(f"{load}: the best real split serves {by:.1%} more than the chosen one")
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        picture.draw(asked.plot, title, [*_panes(found)])
    return int(any(by > _WITHIN for by in short.values()))


def _panes(found: Sequence[Record]) -> Iterator[picture.Pane]:
    for load in dict.fromkeys(record.params["load"] for record in found):
        of = [record for record in found if record.params["load"] == load]
        lines = [picture.pane(of, name, "fleet").lines[0] for name in ("simulated", "real")]
        for line, name in zip(lines, ("simulated", "real"), strict=True):
            line.label = name
        (chosen,) = (r.params["fleet"] for r in of if r.name == "chosen" and r.value)
        yield picture.Pane(f"{load}, requests/s; chosen: {chosen}", "fleet", lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.splits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=at_least(2), default=4, help="(default: %(default)s)")
    add("--loads", nargs="+", choices=[*LOADS], default=[*LOADS], help="(default: all)")
    add("--seconds", type=positive, default=12.0, help="of each rate (default: %(default)g)")
    add("--json", type=Path, metavar="FILE", help="where to write the records")
    add("--plot", type=Path, metavar="FILE", help="where to draw them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
