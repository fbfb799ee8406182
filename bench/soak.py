"""``python -m bench.soak``: whether memory stays what it is while more is asked than can be served.

A gateway, a prefill and a decode worker with mock engines. Requests arrive at random at four times
their capacity, so that most are refused; beside them streams whose clients go away after their
first tokens. Each minute: what became of the requests, and the resident memory of each process.
In the end its slope, by least squares, once everything has been met with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from urllib.parse import urlsplit

from rich.console import Console

from bench import records
from bench.overload import DEADLINE, NAME, PROMPT, Fleet, fleet, offer, resident
from bench.records import Record

_MINUTE = 60.0
#: Minutes until caches, pools and the heap are what they will be.
WARM = 5
#: Between streams whose clients go away, seconds; of how many tokens; after how many bytes they go.
_PAUSE, _TOKENS, _ENOUGH = 1.0, 200, 1000


async def soak(minutes: int, factor: float, prefill_us: float) -> list[Record]:
    """A line of records per minute. Raises FileNotFoundError when a process has died."""
    capacity = 1e6 / prefill_us / PROMPT
    flags = (
        *("--mock", "--mock-prefill-us", str(prefill_us), "--local-prefill-queue", "0"),
        *("--first-token-timeout", str(DEADLINE), "--num-blocks", "256"),
    )
    found: list[Record] = []
    statuses = Counter[int]()  # of those who leave
    async with fleet(flags) as running, asyncio.TaskGroup() as group:
        await offer(running.url, running.admin, NAME, capacity / 4, 10.0, 0)  # measures its pace
        leaving = group.create_task(_keep_leaving(running.url, statuses))
        for minute in range(1, minutes + 1):
            rate, seconds = factor * capacity, _MINUTE - DEADLINE
            phase = await offer(running.url, running.admin, NAME, rate, seconds, minute)
            line = _minute(minute, phase.statuses, statuses[200], running)
            print(*(f"{one.name} {one.value:.4g}" for one in line), sep=", ", flush=True)
            found += line
        leaving.cancel()
    return found


def _minute(minute: int, statuses: Counter[int], left: int, running: Fleet) -> list[Record]:
    params: dict[str, records.Param] = {"minute": minute}
    counts = {"answered": statuses[200], "refused": statuses[429], "late": statuses[504]}
    counts["other"] = statuses.total() - sum(counts.values())
    counts["left so far"] = left
    found = [Record(name, count, "", params) for name, count in counts.items()]
    return found + [
        Record(name, resident(pid) / 2**20, "MiB", params) for name, pid in running.pids.items()
    ]


async def _keep_leaving(url: str, statuses: Counter[int]) -> None:
    """Clients that go away in the middle of their streams. Never ends."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_leave(url, statuses))
            await asyncio.sleep(_PAUSE)


async def _leave(url: str, statuses: Counter[int]) -> None:
    parts = urlsplit(url)
    body = json.dumps(
        {"model": NAME, "prompt": [1] * PROMPT, "max_tokens": _TOKENS}
        | {"ignore_eos": True, "stream": True}
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        status = int((await reader.readline()).split()[1])
        await reader.read(_ENOUGH)
        statuses[status] += 1
    finally:
        writer.close()


def slopes(found: Sequence[Record], warm: int) -> dict[str, float]:
    """MiB per hour of each process after ``warm`` minutes; raises statistics.StatisticsError for
    fewer than two minutes."""
    minutes: dict[str, list[tuple[float, float]]] = {}
    for record in found:
        if record.unit == "MiB" and (minute := float(record.params["minute"])) > warm:
            minutes.setdefault(record.name, []).append((minute / 60.0, record.value))
    return {
        name: linear_regression(*zip(*points, strict=True)).slope
        for name, points in minutes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=int, default=30, help=f"at least {WARM + 2} (%(default)s)")
    add("--factor", type=float, default=4.0, help="of the capacity (%(default)s)")
    add("--prefill-us", type=float, default=1000.0, help="per prompt token: more is less capacity")
    add("--json", type=Path, metavar="FILE", help="where to write the records")
    asked = parser.parse_args()
    if asked.minutes < WARM + 2:
        parser.error(
            f"--minutes {asked.minutes}: at least {WARM + 2}, as {WARM} are for warming up"
        )
    found = asyncio.run(soak(asked.minutes, asked.factor, asked.prefill_us))
    Console().print(records.table("requests of each minute, and memory after it", found))
    for name, slope in slopes(found, WARM).items():
        print(f"{name}: {slope:+.2f} MiB per hour after {WARM} minutes")
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
