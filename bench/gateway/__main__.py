"""``python -m bench.gateway``: see the package.

    stream N       N tokens per second over --streams streams, one event per token
    latency        32 streams of 50 tokens per second each
    short          answers of 4 tokens, a step of 1 ms, 32 clients; streamed and whole
    open           --open streams that get a token every 5 s

    tokens, requests    arrived per second
    per event           tokens: 1 as long as what is measured keeps up
    p50, p99            milliseconds from when a token was made to when the client had it
    CPU                 of what is measured, per token, request or second, and of core B in shares
    memory              that each open stream takes

``per token / WAY``, ``per request / WAY`` and ``memory per stream / WAY`` are over those of a bare
server under the same load, ``p50 - WAY`` and ``p99 - WAY`` the milliseconds added to its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console

from bench import records
from bench.arguments import whole_numbers
from bench.gateway import bare, sides
from bench.gateway.client import Seen
from bench.gateway.sides import Load, Side
from bench.records import Param, Record

#: Tokens of a streamed answer: about as many as the model's context holds.
_LONG = 1900
_SHORT = 4
#: Seconds before those that count.
_WARM = 1.0


def loads(rates: Sequence[int], streams: int, opened: int) -> list[Load]:
    """Every load, in order."""
    found = [Load(f"stream {rate}", streams, _LONG, streams / rate) for rate in rates]
    return [
        *found,
        Load("latency", 32, _LONG, 0.02),
        Load("short, streamed", 32, _SHORT, 0.001),
        Load("short, whole", 32, _SHORT, 0.001, whole=True),
        *([Load("open", opened, _LONG, 5.0)] if opened else []),
    ]


def evaluate(side: Side, load: Load, seen: Sequence[Seen]) -> list[Record]:
    """Medians of all rounds."""
    params: dict[str, Param] = {"load": load.name, "side": side.name}
    mine = side.measured

    def record(name: str, values: Sequence[float], unit: str) -> Record:
        return Record(name, median(values), unit, params)

    found = [
        record("tokens", [s.tokens / s.seconds for s in seen], "1/s"),
        record("busy", [s.cpu[mine] / s.seconds for s in seen], "ratio"),
        record(
            "core B busy",
            [sum(t for name, t in s.cpu.items() if name != mine) / s.seconds for s in seen],
            "ratio",
        ),
    ]
    if load.tokens == _SHORT:
        found += [
            record("requests", [s.answers / s.seconds for s in seen], "1/s"),
            record("CPU per request", [s.cpu[mine] / s.answers * 1e6 for s in seen], "us"),
        ]
    else:
        found += [
            record("per event", [s.tokens / s.events for s in seen], "ratio"),
            record("p50", [s.latency_p50 * 1e3 for s in seen], "ms"),
            record("p99", [s.latency_p99 * 1e3 for s in seen], "ms"),
            record("CPU per token", [s.cpu[mine] / s.tokens * 1e6 for s in seen], "us"),
        ]
    if load.name == "open":
        grown = [(s.resident[mine][1] - s.resident[mine][0]) / load.streams for s in seen]
        found.append(record("memory per stream", [g / 1024 for g in grown], "KiB"))
    return found


def compared(found: Sequence[Record]) -> list[Record]:
    """CPU time, memory and latency beside those of each bare server under the same load."""
    measured = {(r.name, r.params["load"], r.params["side"]): r.value for r in found}
    beside = list[Record]()
    for one in found:
        for way in bare.WAYS:
            if (base := measured.get((one.name, one.params["load"], way), 0.0)) <= 0:
                continue
            if one.name.startswith(("CPU per", "memory per")):
                name = f"{one.name.removeprefix('CPU ')} / {way}"
                beside.append(Record(name, one.value / base, "ratio", one.params))
            elif one.params["load"] == "latency" and one.unit == "ms":
                name = f"{one.name} - {way}"
                beside.append(Record(name, one.value - base, "ms", one.params))
    return beside


async def measure(asked: argparse.Namespace) -> list[Record]:
    """Every side under every load, one side after the other, for so many rounds."""
    seen: dict[tuple[str, str], list[Seen]] = {}
    known: dict[str, Side] = {}
    wanted = loads(asked.rates, asked.streams, asked.open)
    if asked.only:
        wanted = [load for load in wanted if load.name.startswith(asked.only)]
    for _ in range(asked.rounds):
        with TemporaryDirectory() as folder:
            for opening in _sides(Path(folder), asked):
                async with opening as side:
                    known[side.name] = side
                    for load in wanted:
                        got = await side.ask(load, _WARM, asked.seconds)
                        seen.setdefault((load.name, side.name), []).append(got)
    found = [
        record
        for load in wanted
        for name, side in known.items()
        for record in evaluate(side, load, seen[load.name, name])
    ]
    return found + compared(found)


def _sides(folder: Path, asked: argparse.Namespace) -> list[AbstractAsyncContextManager[Side]]:
    return [
        sides.gateway(folder, asked.workers),
        *(sides.bare(folder, way) for way in bare.WAYS if not asked.alone),
        *(sides.router(folder, program) for program in sides.routers(asked.peers)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rates",
        default=[5_000, 10_000, 20_000],
        type=whole_numbers,
        help="tokens per second to stream, in turn (default: 5000,10000,20000)",
    )
    parser.add_argument("--streams", type=int, default=400, help="of these (default: 400)")
    parser.add_argument("--open", type=int, default=0, help="open streams (default: none)")
    parser.add_argument("--workers", type=int, default=4, help="behind the gateway (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--only", default="", help="loads whose names begin so")
    parser.add_argument("--alone", action="store_true", help="no bare servers")
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="with vllm-router, sglang-router or both in it"
    )
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    found = asyncio.run(measure(asked))
    title = f"{asked.workers} workers, {asked.seconds:g} s, median of {asked.rounds} rounds"
    for load in dict.fromkeys(one.params["load"] for one in found):
        lines = [
            replace(one, params={"side": one.params["side"]})
            for one in found
            if one.params["load"] == load
        ]
        Console().print(records.table(f"{load}: {title}", lines))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
