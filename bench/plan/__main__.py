"""``python -m bench.plan``: how many prefill and decode workers to have, and why.

Fleets of so many workers are simulated (``bench.simulate``) under the load of a trace. What a fleet
serves is the highest rate at which the asked share of all requests keeps both SLOs. Said is whether
to disaggregate, into how many of each, up to which prompt length decode workers should compute
prompts themselves (--local-prefill-queue), what that serves per worker, and what breaks first at
2, 10 and 100 times the load. With --all every split is tried, to see what the search has missed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from bench import records
from bench.arguments import at_least, positive
from bench.plan.plot import draw
from bench.plan.search import Goal, Search, Tried, first_to_break
from bench.records import Param, Record
from bench.simulate import options
from bench.simulate.fleet import Fleet

#: Thresholds tried beside the one that is set, tokens; 0: decode workers compute no prompt. None
#: stands for no threshold: they compute what is sooner there.
_THRESHOLDS = (0, 64, 1024)
_LOADS = (2, 10, 100)


def thresholds(search: Search, chosen: Tried, goal: Goal) -> list[Tried]:
    """The chosen fleet with each of ``_THRESHOLDS``."""
    found = []
    for tokens in _THRESHOLDS:
        settings = search.setup.settings.model_copy(update={"local_prefill_queue": tokens})
        other = Search(replace(search.setup, settings=settings), goal, search.timed)
        other.guess = chosen.rate
        found.append(other.rate(chosen.fleet))
    return found


def advise(search: Search, chosen: Tried, goal: Goal, asked: argparse.Namespace) -> list[str]:
    """The answer, a sentence each."""
    alone, slo = search.colocated(asked.workers), goal.slo
    lines = [
        f"For {goal.share:.0%} of requests with a first token in {1e3 * slo.ttft:g} ms and "
        f"{1e3 * slo.tpot:g} ms per token after it, {asked.workers} workers:"
    ]
    split = [t for t in search.tried.values() if t.fleet.prefill]
    other = max(split, key=lambda t: t.rate) if chosen.fleet.colocated and split else alone
    verb = "Disaggregate" if chosen.fleet.prefill else "Do not disaggregate"
    lines.append(
        f"{verb}: {chosen.fleet} serve {chosen.rate:.3g} requests/s, "
        f"{chosen.rate / asked.workers:.3g} per worker; {other.fleet} serve {other.rate:.3g}."
    )
    busy = ", ".join(f"{role} {share:.0%}" for role, share in chosen.outcome.busy.items())
    lines.append(f"At that rate they compute this share of the time: {busy}.")
    worse = first_to_break(search.run(chosen.fleet, 1.1 * chosen.rate), goal)
    lines.append(f"What ends it, at 1.1 times that: {worse}.")
    if chosen.fleet.prefill:
        now = search.setup.settings.local_prefill_queue
        tried: dict[int | None, float] = {now: chosen.rate}
        for tokens, found in zip(_THRESHOLDS, thresholds(search, chosen, goal), strict=True):
            tried[tokens] = found.rate
        best = max(tried, key=lambda tokens: (tried[tokens], tokens == now))
        shown = ", ".join(
            f"{_tokens(each)}: {tried[each]:.3g}/s" for each in sorted(tried, key=_many)
        )
        lines.append(f"--local-prefill-queue {_tokens(best)} ({shown}).")
    rate = asked.rate or chosen.rate
    for times in _LOADS:
        broken = first_to_break(search.run(chosen.fleet, times * rate), goal)
        lines.append(f"At {times} times {rate:.3g} requests/s breaks first: {broken}.")
    return lines


def _many(tokens: int | None) -> float:
    return math.inf if tokens is None else tokens


def _tokens(tokens: int | None) -> str:
    return "unset" if tokens is None else str(tokens)


def _records(search: Search, chosen: Tried) -> list[Record]:
    made = []
    for tried in search.tried.values():
        params: dict[str, Param] = {
            "fleet": str(tried.fleet),
            "chosen": "yes" if tried is chosen else "",
        }
        made.append(Record("goodput", tried.rate, "1/s", params))
        made.append(Record("per worker", tried.rate / tried.fleet.workers, "1/s", params))
        for role, share in tried.outcome.busy.items():
            made.append(Record(f"{role} busy", share, "ratio", params))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for what cannot be planned, 1 where --all finds the choice to be more than 5 %
    below the best."""
    asked = _parser().parse_args(argv)
    options.collect_rarely()
    goal = Goal(slo=options.slo(asked), share=asked.share)
    try:
        base = options.read_jobs(asked)
        setup = options.setup(asked, Fleet(colocated=asked.workers), base)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    search = Search(setup, goal, lambda rate: [*options.timed(asked, base, rate, asked.seconds)])
    chosen = search.best(asked.workers)
    if not chosen.rate:
        print("no split keeps these SLOs, however few requests come", file=sys.stderr)
        return 2
    console, looked = Console(), len(search.tried)
    if asked.all:
        for prefill in range(1, asked.workers):
            search.split(asked.workers, prefill)
    found = _records(search, chosen)
    console.print(records.table(f"{asked.workers} workers", found))
    missed = max(tried.rate for tried in search.tried.values()) / chosen.rate - 1
    if asked.all:
        print(f"Of {len(search.tried)} fleets {looked} were tried to choose; the best serves "
              f"{missed:.1%} more than the chosen one.")  # fmt: skip
    for line in advise(search, chosen, goal, asked):
        print(line)
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        name = asked.trace.name if asked.trace else f"{asked.prompt} in, {asked.output} out"
        title = f"{name}: what {asked.workers} workers serve in time"
        draw(list(search.tried.values()), chosen, title, asked.plot)
    return 1 if missed > 0.05 else 0


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0, up to 1")
    return float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=at_least(1), default=16, help="(default: 16)")
    add("--share", type=_share, default=0.9, help="of requests that keep the SLOs (default: 0.9)")
    add(
        "--seconds",
        type=positive,
        default=20.0,
        help="of each run at least, as a burst is no load: the trace comes again (default: 20)",
    )
    add("--rate", type=positive, help="your load, requests/s; what is served if unset")
    add("--all", action="store_true", help="try every split, and say what the search missed")
    options.add(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
