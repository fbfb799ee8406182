"""``python -m bench.compare A B``: two runs of bench.serve side by side, level by level.

A difference is told with the 95 % interval of a bootstrap over both runs' requests; where that
holds zero, the runs do not show that they differ. What the generator could not have measured in one
of them is not compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import records, report
from bench.load import plots, raw
from bench.load.raw import Level, RawError, Run
from bench.load.statistics import Estimate, Measured, estimate
from bench.records import Param, Record

#: Of which more is better; of everything else, less.
_MORE = ("answered", "throughput", "output", "attained", "goodput", "token goodput")


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one figure, of the second run to the first."""

    first: Estimate
    second: Estimate

    @property
    def doubt(self) -> str:
        if not self.first.value:
            return "the first is 0"
        return self.first.doubt or self.second.doubt

    @property
    def ratio(self) -> float:
        """Less one: 0.1 is a tenth more."""
        return self.second.value / self.first.value - 1

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the ratio less one: any resample of one run with any of the other."""
        pairs = min(len(self.first.draws), len(self.second.draws))
        first, second = self.first.draws[:pairs], self.second.draws[:pairs]
        ratios = second[first > 0] / first[first > 0] - 1
        low, high = np.percentile(ratios, (2.5, 97.5))
        return float(low), float(high)

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low <= 0 <= high:
            return "-"
        return "better" if (low > 0) == (self.first.name in _MORE) else "worse"


def pairs(first: Run, second: Run) -> list[tuple[Level, Level]]:
    """Levels of the same kind and size. Raises RawError where there is none."""
    others = {(level.kind, level.value): level for level in second.levels if level.answers}
    found = [
        (level, others[level.kind, level.value])
        for level in first.levels
        if level.answers and (level.kind, level.value) in others
    ]
    if not found:
        had, has = (", ".join(level.label for level in run.levels) for run in (first, second))
        raise RawError(f"no level in common: one has {had or 'none'}, the other {has or 'none'}")
    return found


def differences(first: Sequence[Estimate], second: Sequence[Estimate]) -> list[Difference]:
    """Of what both have."""
    others = {one.name: one for one in second}
    return [Difference(one, others[one.name]) for one in first if one.name in others]


def _table(label: str, names: tuple[str, str], found: Sequence[Difference]) -> Table:
    made = Table(title=label, title_justify="left")
    for column in ("", *names, "unit", "difference", "95 % interval", ""):
        made.add_column(column, justify="left" if column in ("", "unit") else "right")
    for one in found:
        first, second = one.first, one.second
        values = [f"{each.value:.4g}" if not each.doubt else "refused" for each in (first, second)]
        if one.doubt:
            made.add_row(first.name, *values, first.unit, "", one.doubt, "", style="yellow")
            continue
        low, high = one.interval
        style = {"better": "green", "worse": "red"}.get(one.verdict)
        made.add_row(
            *(first.name, *values, first.unit, f"{one.ratio:+.1%}"),
            *(f"{low:+.1%} to {high:+.1%}", one.verdict),
            style=style,
        )
    return made


def _records(found: Sequence[Difference], params: dict[str, Param]) -> list[Record]:
    listed: list[Record] = []
    for one in found:
        name = one.first.name
        if one.doubt:
            listed.append(records.refused(name, one.doubt, params))
        else:
            low, high = one.interval
            listed += records.estimated(name, 1 + one.ratio, (1 + low, 1 + high), "ratio", params)
    return listed


def compare(first: Run, second: Run, options: argparse.Namespace, console: Console) -> None:
    """Print, store and draw. Raises RawError, OSError, ValueError as bench.report."""
    slo, trust = report.slo(options), report.trust(options)
    names = _names(first, second)
    for name, run in zip(names, (first, second), strict=True):
        console.print(f"{name}: {report.told(run)}", markup=False)
    listed: list[Record] = []
    drawn: list[tuple[str, Measured]] = []
    for one, other in pairs(first, second):
        measured = Measured(one), Measured(other)
        found = differences(*(estimate(m, slo, trust, seed) for seed, m in enumerate(measured)))
        console.print(_table(one.label, names, found))
        listed += _records(found, {one.kind: one.value})
        drawn += [(f"{name}, {one.label}", m) for name, m in zip(names, measured, strict=True)]
    if options.json is not None:
        records.write(options.json, listed)
    if options.plot is not None:
        title = f"{names[0]} and {names[1]}"
        plots.draw_beside(options.plot, title, drawn, slo, options.attain)


def _names(first: Run, second: Run) -> tuple[str, str]:
    """Their labels, or A and B where these do not tell them apart."""
    one, other = (str(run.params.get("label", "")) for run in (first, second))
    return (one, other) if one and other and one != other else ("A", "B")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 2 for files that cannot be read or compared."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=Path, metavar="A", help="as bench.serve writes it")
    parser.add_argument("second", type=Path, metavar="B", help="set beside it")
    report.add_options(parser)
    options = parser.parse_args(argv)
    try:
        compare(raw.read(options.first), raw.read(options.second), options, Console())
    except (OSError, RawError, ValueError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
