"""``python -m bench.telemetry``: what it costs to tell what requests go through.

CPU seconds per generated token of gateway and mock workers together, by their threads' own clocks.
Mock workers compute nothing, so this is of what Baton itself takes; with a real model it is less.
The same requests are made in every way, one way after the other in an order that is drawn anew for
each round; each way is compared with ``off`` in its own round.

    off            nobody asks, nobody listens
    timings        every request asks for them (x-baton-timings)
    feed           one listener at /live
    trace          every request is traced, to a collector in this process
    not sampled    traces are on, but the requests say that they are of none
    all            timings, feed and trace

``cost`` is the mean of the ratios to ``off``, less 1, with its 95 % interval (bootstrap).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from rich.console import Console

from bench import overload, records
from bench.records import Param, Record

#: Of each request, tokens; and how many are under way at a time.
PROMPT, AT_ONCE = 40, 8
#: Means that are drawn for an interval.
_DRAWS = 10_000
_PORTS = ("--rpc-port", "0")
_TIMED = {"x-baton-timings": "1"}
_NOT_SAMPLED = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are made."""

    traced: bool = False  #: of the gateway and workers with --otlp-endpoint
    headers: Mapping[str, str] | None = None
    feed: bool = False


WAYS: Mapping[str, Way] = {
    "off": Way(),
    "timings": Way(headers=_TIMED),
    "feed": Way(feed=True),
    "not sampled": Way(traced=True, headers=_NOT_SAMPLED),
    "trace": Way(traced=True),
    "all": Way(traced=True, headers=_TIMED, feed=True),
}


class Collector:
    """Takes spans, and counts them."""

    def __init__(self) -> None:
        self.spans = 0

    async def Export(  # noqa: N802 - named by the contract
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            self.spans += sum(len(scope.spans) for scope in resource.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def collecting(collector: Collector) -> AsyncIterator[str]:
    """Yields where it listens."""
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def cpu_seconds(gateway: int) -> float:
    """That the gateway, and all processes started beside it, have taken so far, by all threads that
    live."""
    parent = _parent(gateway)
    family = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sum(_ran(pid) for pid in family if _parent(pid) == parent)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _ran(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@asynccontextmanager
async def listening(admin: str, wanted: bool) -> AsyncIterator[None]:
    """Somebody reads the feed meanwhile, if it is wanted."""
    if not wanted:
        yield
        return

    async def read(begun: asyncio.Event) -> None:
        async with (
            httpx.AsyncClient(timeout=None) as client,
            client.stream("GET", f"{admin}/live") as answer,
        ):
            async for _ in answer.aiter_raw():
                begun.set()

    begun = asyncio.Event()
    reading = asyncio.create_task(read(begun))
    try:
        await begun.wait()
        yield
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def run(fleet: overload.Fleet, way: Way, requests: int, tokens: int, seed: int) -> float:
    """CPU seconds per token of so many requests. Raises RuntimeError when one fails."""
    rng, headers = random.Random(seed), dict(way.headers or {})
    prompts = [[rng.randrange(256) for _ in range(PROMPT)] for _ in range(requests)]
    turns = asyncio.Semaphore(AT_ONCE)
    async with (
        httpx.AsyncClient(base_url=fleet.url, timeout=120) as client,
        listening(fleet.admin, way.feed),
    ):
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def ask(prompt: list[int]) -> None:
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
            content = json.dumps({**body, "ignore_eos": True, "temperature": 0})
            async with turns:
                answer = await client.post("/v1/completions", content=content, headers=headers)
            if not answer.text.endswith("data: [DONE]\n\n") or '"error"' in answer.text:
                raise RuntimeError(f"a request failed: {answer.text[-300:]}")

        before = cpu_seconds(fleet.gateway_pid)
        await asyncio.gather(*map(ask, prompts))
        return (cpu_seconds(fleet.gateway_pid) - before) / (requests * tokens)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of their mean, 95 %."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    return means[round(0.025 * _DRAWS)], means[round(0.975 * _DRAWS) - 1]


async def measure(rounds: int, requests: int, tokens: int) -> list[Record]:
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    collector = Collector()
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(collecting(collector))
        fleets = {
            False: await stack.enter_async_context(overload.fleet(_PORTS)),
            True: await stack.enter_async_context(
                overload.fleet((*_PORTS, "--otlp-endpoint", endpoint))
            ),
        }
        rng = random.Random(os.getpid())
        for number in range(-1, rounds):
            for name in rng.sample(list(WAYS), len(WAYS)):
                way = WAYS[name]
                took = await run(fleets[way.traced], way, requests, tokens, 1000 * number)
                if number >= 0:  # the first round warms up
                    found[name].append(took)
    if not collector.spans:
        raise RuntimeError("no span has reached the collector")
    return [record for name in WAYS for record in _compared(name, found[name], found["off"])]


def _compared(name: str, took: Sequence[float], off: Sequence[float]) -> list[Record]:
    ratios = [mine / theirs - 1 for mine, theirs in zip(took, off, strict=True)]
    low, high = interval(ratios)
    params: dict[str, Param] = {"way": name}
    return [
        Record("CPU per token", fmean(took) * 1e6, "us", params),
        Record("cost", fmean(ratios) * 100, "%", params),
        Record("from", low * 100, "%", params),
        Record("to", high * 100, "%", params),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="bench.telemetry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="(default: 20)")
    parser.add_argument("--requests", type=int, default=32, help="of each way in a round")
    parser.add_argument("--tokens", type=int, default=128, help="of each request (default: 128)")
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    found = asyncio.run(measure(asked.rounds, asked.requests, asked.tokens))
    title = f"{asked.requests} requests of {asked.tokens} tokens, {asked.rounds} rounds"
    Console().print(records.table(title, found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
