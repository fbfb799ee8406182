"""``python -m bench.sweep SETTING``: one setting of a simulated fleet, at several values.

    bench.sweep placement prefix least-queued --trace mooncake.jsonl --rates 4 8 12
    bench.sweep local_prefill_queue 0 64 512 4096 --trace azure.csv --rates 20 40 60

The same load for all (``bench.simulate`` says what its numbers are); each is simulated in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError
from rich.console import Console

from baton.settings import UpSettings
from bench import picture, records
from bench.arguments import at_least, positive
from bench.records import Param, Record
from bench.simulate import options
from bench.simulate.fleet import Fleet, Setup, simulate
from bench.simulate.jobs import Job

_SHOWN = ("attained", "goodput", "TTFT p50", "TTFT p90", "TPOT p90", "hit", "local")


def with_setting(setup: Setup, name: str, value: str) -> Setup:
    """Raises ValueError for a setting or a value that is none."""
    if name not in UpSettings.model_fields:
        raise ValueError(f"{name} is no setting: docs/settings.md has them, with _ for -")
    given = {field: getattr(setup.settings, field) for field in setup.settings.model_fields_set}
    try:
        return replace(setup, settings=UpSettings.model_validate({**given, name: value}))
    except ValidationError as error:
        raise ValueError(f"{name}: {error.errors()[0]['msg']}") from None


def measure(
    setups: Mapping[str, Setup], loads: Mapping[float, Sequence[Job]], asked: argparse.Namespace
) -> Iterator[Record]:
    """Every value at every rate."""
    for value, setup in setups.items():
        for rate, load in loads.items():
            outcome = simulate(setup, load)
            params: dict[str, Param] = {asked.setting: value, "offered, 1/s": rate}
            seen = {r.name: r for r in outcome.records(options.slo(asked), params)}
            yield from (seen[name] for name in _SHOWN)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for what cannot be simulated."""
    asked = _parser().parse_args(argv)
    options.collect_rarely()
    try:
        base = options.read_jobs(asked)
        fleet = Fleet(prefill=asked.prefill, decode=asked.decode, colocated=asked.colocated)
        setup = options.setup(asked, fleet, base)
        setups = {value: with_setting(setup, asked.setting, value) for value in asked.values}
        loads = {rate: [*options.timed(asked, base, rate)] for rate in asked.rates}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found = list(measure(setups, loads, asked))
    title = f"{fleet}, by --{asked.setting.replace('_', '-')}"
    Console().print(records.table(title, found))
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        of = asked.trace.name if asked.trace else f"{asked.prompt} in, {asked.output} out"
        panes = [
            picture.pane(found, name, "offered, 1/s", asked.setting)
            for name in _SHOWN
            if any(record.value for record in found if record.name == name)
        ]
        picture.draw(asked.plot, f"{title} ({of}), simulated", panes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("setting", help="of docs/settings.md, with _ for -")
    add("values", nargs="+")
    add("--prefill", type=at_least(0), default=4, help="workers (default: %(default)s)")
    add("--decode", type=at_least(0), default=4, help="workers (default: %(default)s)")
    add("--colocated", type=at_least(0), default=0, help="workers that do both")
    add("--rates", type=positive, nargs="+", required=True, help="requests per second")
    options.add(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
