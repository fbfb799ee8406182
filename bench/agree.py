"""``python -m bench.agree``: the simulator beside real fleets.

A gateway and workers are started (``baton up``: mocks with the costs of a file, or, with --engines,
engines with a model of SmolLM2-135M's shape) and asked at random (Poisson); the same requests at
the same times are simulated, several times, as placement draws between equals. A line per fleet,
rate and number: real with its 95 % interval, simulated, how far off, and whether that agrees:
within 10 %, or within the interval.

Costs are of an engine. What a whole fleet takes beyond them is measured of an idle one
(``bench/calibrate.py``). Nothing is fitted to the loads that are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench import costs, picture, records
from bench.arguments import positive
from bench.calibrate import calibrated
from bench.costs import Costs, CostsError
from bench.load.statistics import Estimate, Measured, Slo, Trust, estimate
from bench.load.workload import Lengths
from bench.picture import COLOURS, Line, Pane
from bench.real import Kind, drawn, running, short
from bench.records import Param, Record
from bench.simulate import outcome
from bench.simulate.fleet import Fleet, simulate
from bench.simulate.outcome import Outcome

#: Slow enough for two cores to run five processes of it.
_MOCK = Costs(step_s=0.02, prefill_token_s=0.001, decode_s=5e-4, context_token_s=1e-6)
_WANTED = ("TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "goodput")
_WITHIN = 0.1
_TIMES = 7  #: that each load is simulated
_SHORTEST = 4  #: tokens of an answer: the first two tell nothing of a step


def compared(
    real: Measured, simulated: Sequence[Outcome], slo: Slo, params: dict[str, Param]
) -> Iterator[Record]:
    """A line for each number."""
    for one in estimate(real, slo, Trust(share=_WITHIN, lag=math.inf)):
        if one.name in _WANTED:
            line: dict[str, Param] = {**params, "number": f"{one.name}, {one.unit}"}
            value = fmean(_simulated(each, slo)[one.name] for each in simulated)
            low, high = one.interval
            if one.doubt:
                print(f"{line}: {one.doubt}", file=sys.stderr)
            off = value / one.value - 1 if one.value else 0.0
            yield Record("real", one.value, "ratio", line)
            yield Record("from", low, "ratio", line)
            yield Record("to", high, "ratio", line)
            yield Record("simulated", value, "ratio", line)
            yield Record("off", off, "ratio", line)
            yield Record("agrees", _agrees(one, value, off), "ratio", line)


def _agrees(real: Estimate, simulated: float, off: float) -> int:
    low, high = real.interval
    return int(abs(off) <= _WITHIN or low <= simulated <= high)


def _simulated(seen: Outcome, slo: Slo) -> dict[str, float]:
    assert slo.ttft is not None and slo.tpot is not None, "main() sets both"
    limits = outcome.Slo(ttft=slo.ttft, tpot=slo.tpot)
    found = {one.name: one.value for one in seen.records(limits, {})}
    # As of the real run: by the time until all is answered.
    return found | {"goodput": seen.good(limits) / seen.ended}


async def beside(asked: argparse.Namespace, kind: Kind, size: Fleet) -> list[Record]:
    """Both, at each rate."""
    found, slo = list[Record](), Slo(ttft=asked.slo_ttft / 1e3, tpot=asked.slo_tpot / 1e3)
    prompt, output = asked.prompt, asked.output
    middle = (prompt.least + prompt.most) // 2, (output.least + output.most) // 2
    async with running(kind, size) as fleet:
        kind = await calibrated(fleet, kind, size, *middle)
        said = kind.costs
        print(
            f"{size}: request_s {said.request_s:.4f}, transfer_s {said.transfer_s:.4f}, "
            f"step_s {said.step_s:.5f}, decode_s {said.decode_s:.5f}, beside a neighbour "
            f"{said.prompt_beside:.2f} and {said.decode_beside:.2f}"
        )
        for seed, each in enumerate(asked.rates, start=1):
            rate = each * max(1, size.prefill)
            jobs = drawn(round(rate * asked.seconds), rate, prompt, output, seed)
            real = await fleet.run(jobs, seed + 10)
            simulated = [simulate(kind.setup(size, again), jobs) for again in range(_TIMES)]
            params: dict[str, Param] = {"fleet": short(size), "offered, 1/s": rate}
            found += compared(real, simulated, slo, params)
    return found


def panes(found: Sequence[Record]) -> Iterator[Pane]:
    """A pane for each number: real ones with their intervals, simulated ones dashed."""
    fleets = list(dict.fromkeys(record.params["fleet"] for record in found))
    for number in dict.fromkeys(record.params["number"] for record in found):
        lines = []
        for colour, fleet in zip(COLOURS, fleets, strict=False):
            of = [
                record
                for record in found
                if (record.params["fleet"], record.params["number"]) == (fleet, number)
            ]
            values = {
                name: [record.value for record in of if record.name == name]
                for name in ("real", "from", "to", "simulated")
            }
            rates = [record.params["offered, 1/s"] for record in of if record.name == "real"]
            real = Line(f"{fleet}, real", rates, values["real"], values["from"], values["to"])
            real.colour = colour
            lines += [real, Line(f"{fleet}, simulated", rates, values["simulated"])]
            lines[-1].colour, lines[-1].dashed = colour, True
        yield Pane(str(number), "requests per second", lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 where a number does not agree."""
    parser = _parser()
    asked = parser.parse_args(argv)
    if asked.output.least + asked.output.most < 2 * _SHORTEST:
        parser.error(f"--output: of answers of fewer than {_SHORTEST} tokens no step can be timed")
    try:
        known = costs.read(asked.costs) if asked.costs else _MOCK
    except (OSError, CostsError) as error:
        parser.error(f"--costs: {error}")
    found = list[Record]()
    for size in asked.fleets:
        found += asyncio.run(beside(asked, Kind(costs=known, engines=asked.engines), size))
    what = "engines" if asked.engines else "mock workers"
    Console().print(records.table(f"The simulator beside {what}", found))
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        picture.draw(asked.plot, f"The simulator beside {what}", [*panes(found)])
    return 1 if any(r.name == "agrees" and not r.value for r in found) else 0


def _fleet(text: str) -> Fleet:
    prefill, _, decode = text.partition(":")
    try:
        return Fleet(prefill=int(prefill), decode=int(decode))
    except ValueError:
        why = f"{text!r} is not P:D with a worker of each kind at least, as 2:1"
        raise argparse.ArgumentTypeError(why) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agree",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    pairs = [Fleet(prefill=1, decode=1), Fleet(prefill=2, decode=1)]
    add("--fleets", nargs="+", type=_fleet, default=pairs, metavar="P:D", help="(1:1 2:1)")
    add("--engines", action="store_true", help="real ones; --costs is to be of them")
    add("--costs", type=Path, metavar="FILE", help="of bench.fit; of mocks those of this file")
    add(
        "--rates",
        nargs="+",
        type=positive,
        default=[4.0, 8.0, 12.0],
        help="requests a second for each prefill worker (4 8 12)",
    )
    add("--seconds", type=positive, default=30.0, help="of each rate (default: 30)")
    add("--prompt", type=Lengths.parse, default="20:80", help="tokens (default: %(default)s)")
    add("--output", type=Lengths.parse, default="12:36", help="likewise (default: %(default)s)")
    add("--slo-ttft", type=positive, default=200.0, help="ms (default: %(default)s)")
    add("--slo-tpot", type=positive, default=28.0, help="ms (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where to write the records")
    add("--plot", type=Path, metavar="FILE", help="where to draw them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
