"""How long a placement takes: ``python -m bench.placement``.

Workers are values, half of them of each role; nothing is sent. A round is one decision, with what
goes with it: making the keys of the prompt as far as it is cached. Every policy is measured.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TypeAlias, get_args

from baton.identity import CompatibilityClass, Identity, Role
from baton.prefix_keys import PrefixKeys, pack_digests
from baton.settings import PlacementName
from baton.v1 import worker_pb2
from gateway.booking import Booking
from gateway.caches import CacheIndex, Prefix
from gateway.fleet import Load, Report, Worker
from gateway.placement import Need, Placement
from gateway.policies import Policies, Weights, policies
from gateway.roster import Roster

_CLASS = CompatibilityClass("bench", layers=32, kv_heads=8, head_size=128, block_size=16)
_MODEL = "bench"
_TOKENS = 1000
#: The first of these, with which all prompts begin; and different prompts.
_COMMON, _PROMPTS = 128, 500
Ids: TypeAlias = tuple[int, ...]
#: What the median must be under, microseconds.
_GOAL = 100.0


def workers(count: int, rng: random.Random, *, full: bool) -> list[Worker]:
    """Half prefill, half decode, each with a load of its own; with no free block if ``full``."""

    def report(index: int) -> Report:
        return Report(
            identity=Identity(f"{index:032x}", _CLASS),
            roles=frozenset({Role.DECODE if index % 2 else Role.PREFILL}),
            local_prefill=False,
            model=_MODEL,
            max_model_len=131_072,
            vocab_size=128_000,
            load=Load(
                queued_tokens=rng.randrange(10_000),
                running=rng.randrange(64),
                blocks_free=0 if full else 1_000_000 + rng.randrange(10_000),
            ),
            transports=(),
            draining=False,
        )

    return [Worker(f"w{index}:7000", report(index)) for index in range(count)]


def conversations(fleet: Sequence[Worker], rng: random.Random, index: CacheIndex) -> list[Ids]:
    """Prompts, each wholly new to the gateway but for its tokens; every worker caches what all
    begin with, and a few of each role some more of one prompt."""
    common, keys = rng.choices(range(1000), k=_COMMON), PrefixKeys(_CLASS.layout, _CLASS.block_size)
    prompts = [(*common, *rng.choices(range(1000), k=_TOKENS - _COMMON)) for _ in range(_PROMPTS)]
    cached: dict[Worker, set[bytes]] = {worker: set() for worker in fleet}
    for worker in fleet:
        cached[worker].update(keys.keys(keys.root(b""), common))
    for prompt in prompts:
        for side in (0, 1):
            for worker in rng.sample(fleet[side::2], 3):
                held = prompt[: rng.randrange(_COMMON, _TOKENS)]
                cached[worker].update(keys.keys(keys.root(b""), held))
    for worker, held_keys in cached.items():
        told = worker_pb2.CacheChanges(whole=True, entered=pack_digests(held_keys))
        index.apply(worker, told)
    return prompts


def decisions(
    roster: Roster, policies: Policies, prompts: Sequence[Ids], rounds: int, rng: random.Random
) -> list[float]:
    """Seconds of each decision, the keys of its prompt included."""
    placement, took = Placement(rng, policies), []
    for number in range(rounds):
        began = time.perf_counter()
        prefix = Prefix(rng.choice(prompts), b"")
        need = Need(model=_MODEL, tokens=_TOKENS, longest=2 * _TOKENS, prefix=prefix)
        place = placement.choose(roster, need)
        took.append(time.perf_counter() - began)
        if place is not None:
            Booking(place.decode, place.prefill, _TOKENS, float(number), place.cached)
    return took


def main() -> int:
    """Exit status 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--workers", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5000, help="(default: %(default)s)")
    options = parser.parse_args()
    reached = True
    for full in (False, True):
        for name in get_args(PlacementName):
            reached = _measure(name, options.workers, options.rounds, full=full) and reached
    print(f"goal, each median under {_GOAL:g} us: {'reached' if reached else 'missed'}")
    return 0 if reached else 1


def _measure(name: str, count: int, rounds: int, *, full: bool) -> bool:
    """One policy; whether it reaches the goal."""
    rng = random.Random(0)
    fleet = workers(count, rng, full=full)
    chosen = policies(name, Weights(cache=1.0, load=1.0, transfer=1.0))
    prompts = conversations(fleet, rng, chosen.caches or CacheIndex())
    began = time.perf_counter()
    roster = Roster(fleet)
    sorting = time.perf_counter() - began
    took = sorted(1e6 * seconds for seconds in decisions(roster, chosen, prompts, rounds, rng))
    median = statistics.median(took)
    print(
        f"{count} workers, {'all full' if full else 'with room'}, {name}: a decision takes "
        f"{median:.1f} us (p99 {took[int(0.99 * len(took))]:.1f}); sorting them, when one comes "
        f"or goes, {1e3 * sorting:.2f} ms"
    )
    return median < _GOAL


if __name__ == "__main__":
    sys.exit(main())
