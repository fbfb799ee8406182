"""``make chaos ARGS="--seed 7 --faults 100 --streams 1000"``: a fleet, load, and faults.

Two gateways, three prefill and three decode workers are processes of this machine. While clients
stream from them, processes are killed and stopped, their connections broken, cut off, slowed and
delayed, and the disk of their logs is full, by a schedule that is a function of the seed. Every
token must be that of an undisturbed run; in the end nobody may hold anything.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from baton.configure import load
from baton.settings import UpSettings
from tests import etcd
from tests.cases import Case, cases
from tests.chaos import network
from tests.chaos.faults import KINDS, Drop, exposed
from tests.chaos.report import failures, render
from tests.chaos.run import Chaos, Demand, Result
from tests.chaos.schedule import Strike, schedule
from tests.e2e.cluster import DEMO, MODEL
from tests.fleets import Fleet, fleet

GATEWAYS, PREFILL, DECODE = 2, 3, 3
CASES = 48
#: Tokens of a prompt and of an answer; and blocks of 16 for about three of them, so that workers
#: are full and preempt all the time.
PROMPT, ANSWER, BLOCKS = (100, 360), (40, 150), 96
#: Faults that need no network of the run's own.
ANYWHERE = tuple(kind for kind in KINDS if kind != Drop.kind)


def settings(model: Path, *, mock: bool, deterministic: bool, transport: str) -> UpSettings:
    """Of the fleet; a step of the mock is as long as one of a small model."""
    return UpSettings(
        model=str(model),
        served_model_name=MODEL,
        prefill=PREFILL,
        decode=DECODE,
        threads=1,
        num_blocks=BLOCKS,
        max_model_len=512,
        chunk_tokens=128,
        local_prefill_queue=0,  # every prompt is handed over
        kv_transports=list(dict.fromkeys([transport, "grpc"])),
        deterministic=deterministic,
        queue_timeout=120.0,  # this machine may be busy, and all must come through
        **({"mock": True, "mock_step_ms": 20.0, "mock_prefill_us": 200.0} if mock else {}),
    )


def requests(seed: int) -> list[Case]:
    """Greedy and seeded ones in turn; every sixth has two choices."""
    work = cases(random.Random(seed), CASES, PROMPT, ANSWER)
    return [replace(case, choices=2) if case.number % 6 == 5 else case for case in work]


def strikes(seed: int, count: int, seconds: float, kinds: Iterable[str] = ANYWHERE) -> list[Strike]:
    """``count`` faults, spread over ``seconds`` where that is longer than they take anyway."""
    sizes = {"p": PREFILL, "d": DECODE, "g": GATEWAYS, "e": int(etcd.BINARY is not None)}
    planned = schedule(seed, count, sizes, kinds=kinds)
    stretch = max(1.0, seconds / planned[-1].at) if planned else 1.0
    return [replace(strike, at=strike.at * stretch) for strike in planned]


@asynccontextmanager
async def exposed_fleet(up: UpSettings, folder: Path) -> AsyncIterator[Fleet]:
    """Its processes meet by etcd where there is one, and otherwise by themselves."""
    with ExitStack() as stack:
        server = stack.enter_context(etcd.etcd(folder)) if etcd.BINARY else None
        log = folder / "fleet.log"
        async with fleet(up, log, gateways=GATEWAYS, etcd=server, launch=exposed) as running:
            yield running


async def play(asked: argparse.Namespace, planned: list[Strike], folder: Path) -> Result:
    up = settings(
        asked.model, mock=asked.mock, deterministic=asked.deterministic, transport=asked.kv
    )
    given = load(UpSettings, ["--model", str(asked.model), *asked.flags], "baton up")
    up = up.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
    async with exposed_fleet(up, folder) as running:
        demand = Demand(asked.streams, asked.clients, 60.0 * asked.minutes)
        chaos = Chaos(running, PREFILL + DECODE, planned)
        exact = asked.deterministic or asked.mock
        return await chaos.run(requests(asked.seed), demand, asked.seed, exact=exact)


def main() -> int:
    asked = arguments()
    if asked.own_network and not asked.entered and network.permitted():
        network.enter(["tests.chaos", "--entered", *sys.argv[1:]])
    kinds = [kind for kind in asked.kinds if kind != Drop.kind or asked.entered]
    planned = strikes(asked.seed, asked.faults, 60.0 * asked.minutes, kinds)
    print(f"seed {asked.seed}: {len(planned)} faults (at, what, who, how long)")
    print(*planned, sep="\n")
    if etcd.BINARY is None:
        print("nothing befalls etcd: there is none on PATH")
    if not asked.entered:
        print("no packets are dropped: without a network of its own (unshare, ip, iptables)")
    if asked.plan:
        return 0
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"logs: {folder}", flush=True)
    result = asyncio.run(play(asked, planned, folder))
    print(f"seed {asked.seed}: {render(result)}")
    return 1 if failures(result) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=time.time_ns() % 10**6, help="of schedule and load")
    add("--faults", type=int, default=100, help="how many; 0 for load alone")
    add("--streams", type=int, default=1000, help="at least so many")
    add("--minutes", type=float, default=0.0, help="at least so long, the faults spread over it")
    add("--clients", type=int, default=16, help="streams at a time")
    add("--mock", action="store_true", help="workers with a cost model in place of the network")
    add("--model", type=Path, default=DEMO, help="another checkpoint")
    add("--kv", choices=["grpc", "shm"], default="grpc", help="how KV travels")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these faults")
    add(
        "--own-network",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run in a network namespace, where permitted, whose packets the kernel can drop",
    )
    add("--entered", action="store_true", help=argparse.SUPPRESS)
    add("--plan", action="store_true", help="print the schedule and do nothing")
    add(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether tokens are bitwise those of an undisturbed run",
    )
    add("flags", nargs="*", help="after --: flags of `baton up`, for all of the fleet")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
