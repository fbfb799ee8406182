"""What the simulator and the planner are told alike."""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from baton.settings import PlacementName, PrefillOrder, UpSettings
from bench import costs
from bench.arguments import at_least, positive
from bench.costs import Costs
from bench.simulate import jobs
from bench.simulate.fleet import Fleet, Setup
from bench.simulate.jobs import Job
from bench.simulate.machine import MODEL
from bench.simulate.outcome import Slo
from bench.trace import Scale

_COSTS = Path(__file__).parents[1] / "results" / "costs-cpu.json"
#: Settings of workers and gateway that can be given; their defaults are Baton's own.
_COUNTS = (
    "block_size",
    "max_step_tokens",
    "chunk_tokens",
    "max_running",
    "local_prefill_queue",
    "max_queue_tokens",
    "max_queue_requests",
)
_SETTINGS = (*_COUNTS, "placement", "prefill_order", "itl_target_ms")
N = TypeVar("N", int, float)


def add(parser: argparse.ArgumentParser) -> None:
    """What is asked, of which workers, and what counts as good."""
    load = parser.add_argument_group("load")
    load.add_argument("--trace", type=Path, help="lengths and rhythm (bench/trace.py)")
    load.add_argument("--requests", type=at_least(2), default=1000, help="(default: 1000)")
    load.add_argument("--prompt", type=at_least(1), default=512, help="tokens, without --trace")
    load.add_argument("--output", type=at_least(1), default=128, help="likewise (default: 128)")
    load.add_argument("--length-scale", type=positive, default=1.0, help="prompts so much as long")
    load.add_argument("--output-scale", type=positive, default=1.0, help="answers likewise")
    load.add_argument(
        "--burstiness",
        type=positive,
        help="arrivals at random, 1: Poisson, less: bursts; without it as the trace has them, or "
        "Poisson",
    )
    load.add_argument("--seed", type=int, default=0, help="(default: 0)")
    workers = parser.add_argument_group("workers")
    workers.add_argument("--costs", type=Path, default=_COSTS, help="JSON (bench/costs.py)")
    workers.add_argument(
        "--gbit", type=positive, help="bandwidth of each worker's network, in place of the file's"
    )
    workers.add_argument("--blocks", type=at_least(1), default=4096, help="of KV (default: 4096)")
    workers.add_argument("--longest", type=at_least(2), default=16_384, help="tokens of a sequence")
    workers.add_argument("--placement", choices=get_args(PlacementName))
    workers.add_argument("--prefill-order", choices=get_args(PrefillOrder))
    workers.add_argument("--itl-target-ms", type=positive, metavar="MS")
    for name in _COUNTS:
        workers.add_argument(f"--{name.replace('_', '-')}", type=at_least(0), metavar="N")
    good = parser.add_argument_group("what counts as good")
    good.add_argument("--slo-ttft", type=positive, default=1000.0, help="ms (default: 1000)")
    good.add_argument("--slo-tpot", type=positive, default=80.0, help="ms (default: 80)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the records")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw what came out")


def collect_rarely() -> None:
    """Millions of small objects that live for a moment: looking for cycles among them often is in
    vain, and takes a third of the time."""
    gc.set_threshold(100_000, 50, 1000)


def slo(asked: argparse.Namespace) -> Slo:
    return Slo(ttft=asked.slo_ttft / 1e3, tpot=asked.slo_tpot / 1e3)


def read_jobs(asked: argparse.Namespace) -> list[Job]:
    """In the rhythm of their trace, or all at once without one. Raises TraceError, OSError."""
    if asked.trace is None:
        return [Job(n, 0.0, asked.prompt, asked.output) for n in range(asked.requests)]
    cap = asked.longest // 2
    scale = Scale(
        length=asked.length_scale, output=asked.output_scale, prompt_cap=cap, output_cap=cap
    )
    return jobs.read(asked.trace, asked.requests, scale)


def timed(
    asked: argparse.Namespace, base: Sequence[Job], rate: float, seconds: float = 0.0
) -> Iterable[Job]:
    """At so many requests per second on average, for so long at least; may be had once."""
    if asked.trace is None or asked.burstiness is not None:
        burstiness, count = asked.burstiness or 1.0, max(len(base), math.ceil(rate * seconds))
        count = max(count, asked.requests)
        return jobs.drawn(base, count, rate, burstiness, asked.seed)
    return jobs.at_rate(base, rate, seconds)


def setup(asked: argparse.Namespace, fleet: Fleet, base: Sequence[Job]) -> Setup:
    """Raises CostsError, OSError, and ValueError for settings that are none."""
    given = {name: value for name in _SETTINGS if (value := getattr(asked, name)) is not None}
    return Setup(
        fleet=fleet,
        settings=UpSettings(model=MODEL, **given),
        costs=_costs(asked),
        blocks=asked.blocks,
        longest=asked.longest,
        caching=jobs.share(base),
        seed=asked.seed,
    )


def _costs(asked: argparse.Namespace) -> Costs:
    found = costs.read(asked.costs)
    return found if asked.gbit is None else found.with_network(asked.gbit * 1e9 / 8)
