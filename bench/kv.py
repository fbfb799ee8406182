"""``python -m bench.kv``: how fast KV is handed over between two processes, beside what the
machine can do.

For each size and each KV per token, every path is measured in turn, round after round, so that a
busy moment of the machine meets them all. A first round is not counted, but for memory. Values are
medians over the rounds; a ratio is the median of each round's own ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console

from bench import records
from bench.job import MIB, Job
from bench.pair import Pair, PeerFailed, Run, pair
from bench.paths import LIMITS, MISSING, TRANSPORTS
from bench.records import Param, Record

PATHS = (*LIMITS, *TRANSPORTS)
_GB = 1e9

#: Transport, limit, and what part of the limit is wanted.
GOALS = tuple(
    (transport, limit)
    for transport, limit in (
        ("grpc", "bare grpc"),
        ("grpc", "tcp"),
        ("shm", "tcp"),
        ("shm", "memcpy"),
        ("nixl", "bare nixl"),
        ("nixl", "nixl blocks"),
    )
    if transport in TRANSPORTS and limit in LIMITS
)

Rounds = dict[str, list[Run]]  # by path, all of the same job


async def measure(
    sizes: Sequence[int], token_sizes: Sequence[int], rounds: int, say: Callable[[str], None]
) -> list[Record]:
    """Every size (MiB) with every KV per token (KiB). Raises PeerFailed, and ValueError for sizes
    that do not fit together or KV that did not arrive as it was sent."""
    jobs = [Job("", mib, token_kib, 0) for mib in sizes for token_kib in token_sizes]
    found: list[Record] = []
    for path, why in MISSING.items():
        say(f"{path} is left out: {why}")
    async with pair(max(sizes) * MIB) as processes:
        for job in jobs:
            say(f"{job.mib} MiB, {job.token_kib} KiB per token")
            found += evaluate(job, await _series(processes, job, rounds))
    return found


async def _series(processes: Pair, like: Job, rounds: int) -> Rounds:
    """A round to get warm, and ``rounds`` more, all of one shape."""
    runs: Rounds = {path: [] for path in PATHS}
    for count in range(rounds + 1):
        for index, path in enumerate(PATHS):
            job = Job(path, like.mib, like.token_kib, count * len(PATHS) + index)
            runs[path].append(await processes.move(job))
            if path in TRANSPORTS and count in (0, rounds):
                await processes.require_equal(job)
    await processes.close_paths()
    return runs


def evaluate(job: Job, runs: Rounds) -> list[Record]:
    """The records of one series."""
    shared: dict[str, Param] = {"size MiB": job.mib, "KV/token KiB": job.token_kib}
    found: list[Record] = []
    gb = job.nbytes / _GB

    def add(path: str, name: str, value: float, unit: str) -> None:
        found.append(Record(name, value, unit, {**shared, "path": path}))

    for path, every in runs.items():
        warm = every[1:]
        add(path, "throughput", median(gb / run.seconds for run in warm), "GB/s")
        add(path, "sender CPU", median(run.sender_cpu_s for run in warm) / gb, "s/GB")
        add(path, "receiver CPU", median(run.receiver_cpu_s for run in warm) / gb, "s/GB")
        add(path, "sender memory", max(run.sender_peak_bytes for run in every) / MIB, "MiB")
        add(path, "receiver memory", max(run.receiver_peak_bytes for run in every) / MIB, "MiB")
        for transport, limit in GOALS:
            if transport == path:
                pairs = zip(warm, runs[limit][1:], strict=True)
                ratio = median(best.seconds / run.seconds for run, best in pairs)
                add(path, f"of {limit}", ratio, "ratio")
    return found


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.kv", description=__doc__.partition(":")[2])
    parser.add_argument(
        "--sizes", type=_numbers, default=[64, 256], help="MiB per hand-off (64,256)"
    )
    parser.add_argument(
        "--token-sizes", type=_numbers, default=[16, 128], help="KiB of KV per token (16,128)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5)")
    parser.add_argument("--json", type=Path, help="where to write the records")
    asked = parser.parse_args(argv)
    console, progress = Console(width=180), Console(stderr=True)
    try:
        found = asyncio.run(measure(asked.sizes, asked.token_sizes, asked.rounds, progress.print))
    except (PeerFailed, ValueError) as error:
        print(f"bench.kv: {error}", file=sys.stderr)
        return 1
    console.print(records.table("KV hand-off between two processes", found))
    if asked.json is not None:
        records.write(asked.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
