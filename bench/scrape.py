"""``python -m bench.scrape``: how long a scrape of the gateway takes beside many open streams.

A mock worker gives every stream a token per step, all at once, and steps are long: in between the
streams are open and silent, and a scrape takes what it costs; during a burst it waits its turn on
the event loop, as any request does. So each scrape is followed by a GET of /health, which costs
nothing and waits as long. The streams are held by a process of its own.

    scrape, health    milliseconds from request to the whole answer, over a connection that is kept
    size              of what a scrape returns
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import quantiles
from typing import TypeAlias
from urllib.parse import urlsplit

from rich.console import Console

from bench import records
from bench.arguments import whole_numbers
from bench.overload import NAME, Fleet, fleet
from bench.records import Param, Record

#: Tokens of each prompt.
_PROMPT = 4
#: Streams that wait for their first token at a time.
_OPENING = 1000
#: Seconds between scrapes: not in step with the worker.
_PAUSE = 0.037


def _flags(streams: int, step: float) -> tuple[str, ...]:
    """A worker whose batch holds all streams and takes ``step`` seconds for a token of each."""
    tokens, patient = str(streams * _PROMPT), "1e7"  # seconds: none is refused for being late
    return (
        *("--mock", "--colocated", "1", "--mock-step-ms", str(step * 1e3)),
        *("--mock-prefill-us", "0", "--mock-decode-us", "0", "--max-running", str(streams)),
        *("--num-blocks", str(16 * streams), "--max-step-tokens", tokens, "--chunk-tokens", tokens),
        # A step takes long whatever is in it: prompts need not wait to keep it short.
        *("--itl-target-ms", "inf"),
        # A burst of tokens keeps the gateway's loop from its heartbeats.
        *("--heartbeat-interval", "10", "--retry-budget", patient),
        *("--max-queue-tokens", tokens, "--max-queue-requests", str(streams)),
        *(
            flag
            for name in ("queue", "prefill", "first-token", "inter-token", "total", "stall")
            for flag in (f"--{name}-timeout", patient)
        ),
    )


def _hold(url: str, streams: int, begun: Event) -> None:
    """Open so many streams and read them, for as long as the process lives."""
    asyncio.run(_read_all(urlsplit(url).hostname or "", urlsplit(url).port or 0, streams, begun))


def _request(host: str, number: int) -> bytes:
    body = {
        "model": NAME,
        "prompt": [number // 256 % 256, number % 256, 1, 2],
        "max_tokens": 200,
        "ignore_eos": True,
        "stream": True,
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _read_all(host: str, port: int, streams: int, begun: Event) -> None:
    turns, waiting = asyncio.Semaphore(_OPENING), streams

    async def read(number: int) -> None:
        nonlocal waiting
        async with turns:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(_request(host, number))
            head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a stream was refused: {head.decode()}")
        waiting -= 1
        if not waiting:
            begun.set()
        while await reader.read(65536):
            pass

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(read(number))


@contextmanager
def _streams(url: str, count: int, patience: float) -> Iterator[None]:
    """So many open streams within the body. Raises RuntimeError when they do not all begin."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    holder = context.Process(target=_hold, args=(url, count, begun), daemon=True)
    holder.start()
    try:
        end = time.monotonic() + patience
        while not begun.wait(1.0):
            if not holder.is_alive() or time.monotonic() > end:
                raise RuntimeError(f"{count} streams did not all begin within {patience:g} s")
        yield
    finally:
        holder.kill()
        holder.join()


#: Milliseconds of scrapes and of health, and the bytes of the last scrape.
Probed: TypeAlias = tuple[list[float], list[float], int]


def _probe(admin: str, seconds: float) -> Probed:
    connection = HTTPConnection(urlsplit(admin).netloc, timeout=60)
    scrapes, healths, size = list[float](), list[float](), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for path, times in (("/metrics", scrapes), ("/health", healths)):
            began = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse().read()
            times.append((time.perf_counter() - began) * 1e3)
            size = len(answer) if path == "/metrics" else size
        time.sleep(_PAUSE)
    connection.close()
    return scrapes, healths, size


def _beside(running: Fleet, count: int, seconds: float) -> Probed:
    if not count:
        return _probe(running.admin, seconds)
    with _streams(running.url, count, patience=300.0):
        return _probe(running.admin, seconds)


async def measure(counts: Sequence[int], step: float, seconds: float) -> list[Record]:
    """With each count of open streams in turn."""
    found: list[Record] = []
    for count in counts:
        async with fleet(_flags(max(counts), step)) as running:
            scrapes, healths, size = await asyncio.to_thread(_beside, running, count, seconds)
        params: dict[str, Param] = {"open streams": count, "scrapes": len(scrapes)}
        for name, times in (("scrape", scrapes), ("health", healths)):
            cuts = quantiles(times, n=100)
            for share in (50, 90, 99):
                found.append(Record(f"{name}, p{share}", cuts[share - 1], "ms", params))
        found.append(Record("size", size / 1024, "KiB", params))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scrape",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--streams", type=whole_numbers, default="0,10000", help="open ones (default: 0,10000)"
    )
    parser.add_argument("--step", type=float, default=5.0, help="seconds of a step (default: 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each (default: 20)")
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    found = asyncio.run(measure(asked.streams, asked.step, asked.seconds))
    Console().print(records.table(f"a token to each stream every {asked.step:g} s", found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
