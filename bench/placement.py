"""How long a placement takes: ``python -m bench.placement``.

Workers are values, half of them of each role; nothing is sent. A round is one decision and what
goes with it: the booking on both workers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

from baton.identity import CompatibilityClass, Identity, Role
from gateway.fleet import Booking, Load, Report, Worker
from gateway.placement import Need, Placement
from gateway.roster import Roster

_CLASS = CompatibilityClass("bench", layers=32, kv_heads=8, head_size=128, block_size=16)
_MODEL = "bench"
_TOKENS = 1000
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


def decisions(roster: Roster, rounds: int, rng: random.Random) -> list[float]:
    """Seconds of each decision."""
    placement, took = Placement(rng), []
    for number in range(rounds):
        need = Need(model=_MODEL, tokens=_TOKENS, longest=2 * _TOKENS)
        began = time.perf_counter()
        place = placement.choose(roster, need)
        took.append(time.perf_counter() - began)
        if place is not None:
            Booking(place.decode, place.prefill, _TOKENS, now=float(number))
    return took


def main() -> int:
    """Exit status 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--workers", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5000, help="(default: %(default)s)")
    options = parser.parse_args()
    rng = random.Random(0)
    reached = True
    for name, full in (("with room", False), ("all full", True)):
        fleet = workers(options.workers, rng, full=full)
        began = time.perf_counter()
        roster = Roster(fleet)
        sorting = time.perf_counter() - began
        took = sorted(1e6 * seconds for seconds in decisions(roster, options.rounds, rng))
        median, p99 = statistics.median(took), took[int(0.99 * len(took))]
        reached = reached and median < _GOAL
        print(
            f"{options.workers} workers, {name}: a decision takes {median:.1f} us (p99 {p99:.1f}); "
            f"sorting them, when one comes or goes, {1e3 * sorting:.2f} ms"
        )
    print(f"goal, median under {_GOAL:g} us: {'reached' if reached else 'missed'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
