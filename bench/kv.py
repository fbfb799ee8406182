"""``python -m bench.kv``: what the hand-off of KV costs, and what of it anyone notices.

    transports    GB/s, CPU and memory of each transport, beside what the machine can do
    requests      whole requests, prefilled elsewhere, beside those of a colocated worker
    itl           how much slower a batch decodes while KV arrives
    memory        what a long prompt, read slowly, makes both ends grow by
    timeline      a picture of one request, layer by layer: with --plot FILE

Two cores are used, one for each side, so let nothing else run. The last table says which goals
were reached.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from baton import log as logs
from bench import goals, itl, memory, records, requests, transports
from bench.arguments import some_of, whole_numbers
from bench.fleet import fleet
from bench.pair import PeerFailed
from bench.paths import TRANSPORTS
from bench.records import Record
from bench.shapes import SHAPES

PARTS = ("transports", "requests", "itl", "memory", "timeline")

Say = Callable[[str], None]
Show = Callable[[str, list[Record]], None]


async def measure(asked: argparse.Namespace, say: Say, show: Show) -> list[Record]:
    """Every part asked for, shown as soon as it is done. Raises PeerFailed and ValueError."""
    found: list[Record] = []

    def add(title: str, measured: list[Record]) -> None:
        show(title, measured)
        found.extend(measured)

    shape, over = SHAPES[asked.model], asked.over
    if "transports" in asked.only:
        series = await transports.measure(over, asked.sizes, asked.token_sizes, asked.rounds, say)
        add("KV between two processes", series)
    if "memory" in asked.only:
        grown = await memory.measure(over, asked.memory_tokens, say)
        add("Memory in flight", grown)
    if "itl" in asked.only:
        load = itl.Load(asked.itl_gb, asked.itl_window, asked.itl_rounds)
        add("Between tokens, beside a hand-off", await itl.measure(shape, over, load, say))
    if {"requests", "timeline"} & asked.only:
        longest = max(*asked.tokens, asked.timeline_tokens)
        async with fleet(shape, over, longest) as workers:
            for name, why in workers.unavailable.items():
                say(f"{name} cannot be used here: {why}")
            if "requests" in asked.only:
                rows = await requests.measure(workers, asked.tokens, asked.rounds, say)
                add("Whole requests", rows)
            if "timeline" in asked.only:
                from bench import timeline  # needs matplotlib

                say(f"a timeline of {asked.timeline_tokens} tokens")
                courses = await timeline.measure(workers, asked.timeline_tokens)
                timeline.plot(asked.plot, shape.name, courses)
    return found


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag: str, help: str, **options: Any) -> None:
        told = f"{help} (%(default)s)" if "default" in options else help
        parser.add_argument(flag, help=told, **options)

    add("--only", "some of the parts above, a,b; all if unset", type=some_of(PARTS))
    add("--over", "transports", type=some_of(TRANSPORTS), default=",".join(TRANSPORTS))
    add("--rounds", "counted rounds of transports and requests", type=int, default=5)
    add("--json", "where to write the records", type=Path, metavar="FILE")
    add("--plot", "where to write the timeline, a PNG", type=Path, metavar="FILE")
    add("--sizes", "transports: MiB per hand-off", type=whole_numbers, default="64,256")
    add("--token-sizes", "transports: KiB per token", type=whole_numbers, default="16,128")
    add("--model", "shape of the model", choices=[*SHAPES], default=next(iter(SHAPES)))
    add("--tokens", "requests: prompts", type=whole_numbers, default="512,1024,2048,4096")
    add("--timeline-tokens", "timeline: prompt", type=int, default=2048)
    add("--memory-tokens", "memory: prompt", type=int, default=32_768)
    add("--itl-gb", "itl: GB/s that arrive", type=float, default=0.5)
    add("--itl-window", "itl: seconds watched at a time", type=float, default=1.0)
    add("--itl-rounds", "itl: windows with, and as many without", type=int, default=12)
    asked = parser.parse_args(argv)
    if min(asked.rounds, asked.itl_rounds, *asked.tokens, asked.timeline_tokens) < 1:
        parser.error("rounds and tokens are at least 1")
    if asked.only is None:
        asked.only = [part for part in PARTS if part != "timeline" or asked.plot is not None]
    elif ("timeline" in asked.only) != (asked.plot is not None):
        parser.error("the timeline goes to a file: --only timeline and --plot need each other")
    if asked.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install '.[bench]'")
    asked.only = {*asked.only}
    return asked


def main(argv: Sequence[str]) -> int:
    asked = _parse(argv)
    console, progress = Console(width=180), Console(stderr=True)

    def show(title: str, measured: list[Record]) -> None:
        console.print(records.table(title, measured))

    try:
        found = asyncio.run(measure(asked, progress.print, show))
    except (PeerFailed, ValueError, OSError) as error:
        print(f"bench.kv: {error}", file=sys.stderr)
        return 1
    if verdicts := goals.judge(found):
        console.print(goals.table(verdicts))
    if asked.json is not None:
        records.write(asked.json, found)
    return 0


if __name__ == "__main__":
    logs.configure("warning", "console", "bench")
    sys.exit(main(sys.argv[1:]))
