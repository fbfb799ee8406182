"""How fast KV is handed over between two processes, beside what the machine can do.

For each size and each KV per token, every path is measured in turn, round after round, so that a
busy moment of the machine meets them all. A first round is not counted, but for memory. Values are
medians over the rounds; a ratio is the median of each round's own ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from bench.job import MIB, Job
from bench.pair import Pair, Run, pair
from bench.paths import LIMITS, MISSING, TRANSPORTS
from bench.records import Param, Record

_GB = 1e9

#: Transport, and the limit that it is compared with.
COMPARED = (
    ("grpc tls", "grpc"),
    ("grpc", "bare grpc"),
    ("grpc", "tcp"),
    ("shm", "tcp"),
    ("shm", "memcpy"),
    ("nixl", "bare nixl"),
    ("nixl", "nixl blocks"),
)

Rounds = dict[str, list[Run]]  # by path, all of the same job


async def measure(
    over: Sequence[str],
    sizes: Sequence[int],
    token_sizes: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
) -> list[Record]:
    """These transports and every limit: every size (MiB) with every KV per token (KiB).

    Raises PeerFailed, and ValueError for sizes that do not fit together or KV that did not arrive
    as it was sent.
    """
    jobs = [Job("", mib, token_kib, 0) for mib in sizes for token_kib in token_sizes]
    found: list[Record] = []
    for path, why in MISSING.items():
        say(f"{path} is left out: {why}")
    async with pair(max(sizes) * MIB) as processes:
        for job in jobs:
            say(f"{job.mib} MiB, {job.token_kib} KiB per token")
            found += evaluate(job, await _series(processes, (*LIMITS, *over), job, rounds))
    return found


async def _series(processes: Pair, paths: Sequence[str], like: Job, rounds: int) -> Rounds:
    """A round to get warm, and ``rounds`` more, all of one shape."""
    runs: Rounds = {path: [] for path in paths}
    for count in range(rounds + 1):
        for index, path in enumerate(paths):
            job = Job(path, like.mib, like.token_kib, count * len(paths) + index)
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
        for transport, limit in COMPARED:
            if transport == path and limit in runs:
                pairs = zip(warm, runs[limit][1:], strict=True)
                ratio = median(best.seconds / run.seconds for run, best in pairs)
                add(path, f"of {limit}", ratio, "ratio")
    return found
