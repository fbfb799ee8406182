"""``python -m bench.report FILE``: what a run of bench.serve came to, from its raw file.

Per level of load: throughput, goodput and attainment of the objectives, and percentiles of TTFT,
TPOT, ITL and E2E (bench/load/statistics.py says what they are), each with a 95 % interval. A figure
that the generator could not have measured is not given; the reason is. With several levels: the
highest at which, and below which, the objectives were attained.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import records
from bench.arguments import positive
from bench.load import plots, raw
from bench.load.raw import RawError, Run
from bench.load.statistics import (
    Estimate,
    Measured,
    Slo,
    Trust,
    best,
    cached,
    estimate,
    generator,
    imbalance,
)
from bench.records import Param, Record

#: A sender that was busy for a larger share of the time is worth dividing.
_BUSY = 0.7


def add_options(parser: argparse.ArgumentParser) -> None:
    """How a run is judged, and where that goes."""
    add = parser.add_argument_group("judging").add_argument
    add("--slo-ttft", type=positive, metavar="MS", help="a first token within so many milliseconds")
    add("--slo-tpot", type=positive, metavar="MS", help="and a token every so many")
    add("--slo-e2e", type=positive, metavar="MS", help="and all of it within so many")
    add(
        "--attain",
        type=_share,
        default=0.9,
        metavar="SHARE",
        help="of the requests that are to meet that (default: %(default)s)",
    )
    add(
        "--own-share",
        type=positive,
        default=0.1,
        metavar="SHARE",
        help="of a latency that may be the generator's own lag or lateness (default: %(default)s)",
    )
    add(
        "--max-lag",
        type=positive,
        default=50.0,
        metavar="MS",
        help="of the generator's loop, p99, beyond which nothing is told (default: %(default)g)",
    )
    add("--json", type=Path, metavar="FILE", help="store what was measured")
    add("--plot", type=Path, metavar="FILE", help="draw it (.png, .svg, .pdf)")


def _share(text: str) -> float:
    if (value := positive(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of 1")
    return value


def slo(options: argparse.Namespace) -> Slo:
    ttft, tpot, e2e = (
        None if limit is None else limit / 1e3
        for limit in (options.slo_ttft, options.slo_tpot, options.slo_e2e)
    )
    return Slo(ttft=ttft, tpot=tpot, e2e=e2e)


def trust(options: argparse.Namespace) -> Trust:
    return Trust(share=options.own_share, lag=options.max_lag / 1e3)


def report(run: Run, options: argparse.Namespace, console: Console) -> int:
    """Print, store and draw. Exit status: 1 where a request failed.

    Raises OSError, and ValueError for a picture of no format that is known.
    """
    objectives = slo(options)
    measured = [Measured(level) for level in run.levels if level.answers]
    found = [(one, estimate(one, objectives, trust(options))) for one in measured]
    console.print(told(run), markup=False)
    listed: list[Record] = []
    for one, estimates in found:
        params: dict[str, Param] = {**_limits(objectives), one.level.kind: one.level.value}
        listed += _records(one, estimates, params)
        console.print(_table(one, estimates))
        _notes(one, console)
    if len(found) > 1 and objectives.limits:
        listed += _highest(found, options.attain, _limits(objectives), console)
    if options.json is not None:
        records.write(options.json, listed)
    if options.plot is not None and found:
        plots.draw(options.plot, _title(run), found, objectives, options.attain)
    return 0 if measured and all(one.good.all() for one in measured) else 1


def told(run: Run) -> str:
    """What its figures hold for."""
    return "; ".join(f"{name} {value}" for name, value in run.params.items())


def _limits(objectives: Slo) -> dict[str, Param]:
    return {f"SLO {name}": round(limit * 1e3, 6) for name, limit in objectives.limits.items()}


def _title(run: Run) -> str:
    params = run.params
    return f"{params.get('model', '')} at {params.get('url', '')}: {params.get('workload', '')}"


def _table(measured: Measured, estimates: Sequence[Estimate]) -> Table:
    level = measured.level
    made = Table(
        title=f"{level.label}: {len(level.answers)} requests in {measured.seconds:.1f} s",
        title_justify="left",
    )
    for column in ("", "value", "95 % interval", "unit"):
        made.add_column(column, justify="left" if column in ("", "unit") else "right")
    for doubt, together in groupby(estimates, key=lambda one: one.doubt):
        alike = list(together)
        if doubt:
            names = dict.fromkeys((alike[0].name, alike[-1].name))
            made.add_row(" to ".join(names), "refused", doubt, "", style="yellow")
            continue
        for one in alike:
            low, high = one.interval
            made.add_row(one.name, f"{one.value:.4g}", f"{low:.4g} to {high:.4g}", one.unit)
    made.add_section()
    for name, value, unit in _others(measured):
        made.add_row(name, f"{value:.3g}", "", unit)
    return made


def _others(measured: Measured) -> list[tuple[str, float, str]]:
    level = measured.level
    shares = {"hit": cached(level), "reusable": level.reusable}
    shares |= {f"imbalance {role}": ratio for role, ratio in imbalance(level).items()}
    told = [(name, share, "ratio") for name, share in shares.items() if share is not None]
    return told + [(name, value, unit) for name, (value, unit) in generator(measured).items()]


def _records(
    measured: Measured, estimates: Sequence[Estimate], params: dict[str, Param]
) -> list[Record]:
    listed: list[Record] = []
    for one in estimates:
        if one.doubt:
            listed.append(records.refused(one.name, one.doubt, params))
        else:
            listed += records.estimated(one.name, one.value, one.interval, one.unit, params)
    return listed + [Record(name, value, unit, params) for name, value, unit in _others(measured)]


def _notes(measured: Measured, console: Console) -> None:
    """What one should know before one believes it."""
    failures = Counter(one.status for one in measured.level.answers if not one.good)
    for failure, count in failures.most_common():
        console.print(f"  {count} failed: {failure}", style="red", markup=False, highlight=False)
    silent = sum(one.good and one.prompt is None for one in measured.level.answers)
    if silent:
        console.print(f"  {silent} answers came without usage: their events are taken for tokens")
    if (busiest := max(measured.level.cpu, default=0.0)) > _BUSY:
        console.print(f"  a sender used {busiest:.0%} of a core: give it more --processes")


def _highest(
    found: plots.Found, wanted: float, limits: dict[str, Param], console: Console
) -> list[Record]:
    """The highest load that attains what is wanted, where no smaller one does not."""
    attained = {
        measured.level.value: math.nan if one.doubt else one.value
        for measured, estimates in found
        for one in estimates
        if one.name == "attained"
    }
    highest = best(attained, wanted)
    kind = found[0][0].level.kind
    params: dict[str, Param] = {**limits, "attain": wanted, "by": kind}
    if highest is None:
        unknown = math.isnan(attained[min(attained)])
        verb = "cannot be told to have" if unknown else "has not"
        console.print(f"the smallest {kind} that was tried {verb} attained {wanted:.0%}")
        return []
    console.print(f"highest {kind} with {wanted:.0%} within the objectives: {highest:g}")
    return [Record("highest attained", highest, "1/s" if kind == "rate" else "ratio", params)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a request failed, 2 for a file that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="as bench.serve writes it")
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        return report(raw.read(options.file), options, Console())
    except (OSError, RawError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
