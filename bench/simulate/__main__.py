"""``python -m bench.simulate``: a fleet in virtual time, of thousands of workers if need be.

Placement, admission and scheduling are Baton's own code; what a step and a transfer take comes from
a file of costs. One line per rate:

    TTFT, TPOT, ITL   as clients see them, milliseconds
    attained          share of requests within both SLOs; goodput: so many per second
    hit               share of prompt tokens that were cached
    queue, line       prompt tokens without a first token, requests without a place: at most
    busy              share of the time that the workers of a role computed
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import records
from bench.arguments import at_least, positive
from bench.records import Param, Record
from bench.simulate import options
from bench.simulate.fleet import Fleet, Setup, simulate
from bench.simulate.jobs import Job
from bench.simulate.outcome import Slo


def measure(setup: Setup, loads: Iterable[tuple[float, Iterable[Job]]], slo: Slo) -> list[Record]:
    """Each rate in turn."""
    found = list[Record]()
    for rate, load in loads:
        began = time.process_time()
        outcome = simulate(setup, load)
        params: dict[str, Param] = {"fleet": str(setup.fleet), "offered, 1/s": rate}
        found += outcome.records(slo, params)
        found.append(Record("took", time.process_time() - began, "s", params))
    return found


def draw(found: Sequence[Record], slo: Slo, path: Path) -> None:
    """Latencies and what was attained, over the rate."""
    from matplotlib.figure import Figure  # here: only who draws needs it

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panes = figure.subplots(1, 3)
    limits = {"TTFT": 1e3 * slo.ttft, "TPOT": 1e3 * slo.tpot}
    for pane, name in zip(panes, ("TTFT", "TPOT", "attained"), strict=True):
        for label in [name] if name == "attained" else [f"{name} p{p}" for p in (50, 90, 99)]:
            one = [record for record in found if record.name == label]
            pane.plot(
                [record.params["offered, 1/s"] for record in one],
                [record.value for record in one],
                marker="o",
                label=label,
            )
        if name in limits:
            pane.axhline(limits[name], color="grey", linestyle=":", label="SLO")
            pane.set_yscale("log")
        else:
            pane.set_ylim(0, 1.02)
        pane.set_xlabel("requests per second")
        pane.set_title(f"{name}, ms" if name in limits else "within both SLOs", fontsize=10)
        pane.legend(fontsize=8, frameon=False)
    figure.suptitle(str(found[0].params["fleet"]), fontsize=11)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for what cannot be simulated."""
    asked = _parser().parse_args(argv)
    options.collect_rarely()
    try:
        base = options.read_jobs(asked)
        fleet = Fleet(prefill=asked.prefill, decode=asked.decode, colocated=asked.colocated)
        setup = replace(options.setup(asked, fleet, base), leaps=not asked.step_by_step)
        rates = asked.rates or [_own_rate(base)]
        loads = [(rate, options.timed(asked, base, rate)) for rate in rates]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found = measure(setup, loads, options.slo(asked))
    Console().print(_table(f"{fleet}, {asked.requests} requests", found))
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        draw(found, options.slo(asked), asked.plot)
    return 0


def _table(title: str, found: Sequence[Record]) -> Table:
    """A line per number, a column per rate."""
    made = Table(title=title, title_justify="left")
    made.add_column("requests per second")
    rates = list(dict.fromkeys(record.params["offered, 1/s"] for record in found))
    for rate in rates:
        made.add_column(f"{rate:.4g}" if isinstance(rate, float) else str(rate), justify="right")
    for name, unit in dict.fromkeys((record.name, record.unit) for record in found):
        values = [record.value for record in found if record.name == name]
        made.add_row(name if unit == "ratio" else f"{name}, {unit}", *(f"{v:.4g}" for v in values))
    return made


def _own_rate(base: Sequence[Job]) -> float:
    """Raises ValueError where there is none."""
    if not (span := base[-1].at - base[0].at):
        raise ValueError("without a trace's own times, --rates says how many requests come")
    return (len(base) - 1) / span


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--prefill", type=at_least(0), default=0, help="prefill workers")
    add("--decode", type=at_least(0), default=0, help="decode workers")
    add("--colocated", type=at_least(0), default=0, help="workers that do both")
    add(
        "--rates",
        type=positive,
        nargs="+",
        help="requests per second, in turn; the trace's own if unset",
    )
    add("--step-by-step", action="store_true", help="plan every decode step: slow, and the same")
    options.add(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
