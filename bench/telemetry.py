"""``python -m bench.telemetry``: what it costs to tell what requests go through.

CPU seconds per generated token of gateway and workers together, by their threads' own clocks. Mock
workers compute nothing, so that is of what Baton itself takes; their steps are long enough for the
processors to be idle in between: on busy ones tokens come in larger messages, which cost less each.
With ``--model`` the workers compute, and it is of all that a token takes. Requests alike, of
prompts that no cache has, are made in every way, one after the other in an order that is drawn anew
for each round; each way is compared with ``off`` in its own round. What a process costs depends by
percents on where it came to lie in memory, so the fleets are started anew now and then.
``--instructions`` counts those instead, by perf: they know neither of that nor of neighbours, so
that few rounds tell what seconds would not.

    off            nobody asks, nobody listens
    timings        every request asks for them (x-baton-timings)
    feed           one listener at /live
    trace          every request is traced, to a collector in this process
    tenth          every tenth is, as by OTEL_TRACES_SAMPLER; the others say that they are of none
    not sampled    traces are on, but all requests say so
    all            timings, feed and trace
    all (tenth)    feed; timings and trace of every tenth

``cost`` is the mean of the ratios to ``off``, less 1, with its 95 % interval (bootstrap over starts
and the rounds of each). The seconds until the last spans are sent count in every way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from rich.console import Console

from bench import overload, records
from bench.arguments import some_of
from bench.records import Param, Record

#: Of each request, tokens; and how many are under way at a time.
PROMPT, AT_ONCE = 40, 32
#: Means that are drawn for an interval.
_DRAWS = 10_000
#: Seconds after which the last spans are sent: OpenTelemetry's batches go every 5.
_SETTLING = 5.5
#: Seconds until perf has found all threads.
_ATTACHING = 0.3
_SCALE = {"us": 1e6, "k instructions": 1e-3}
#: Every prompt is handed over: else that depends on the load of a moment, and costs more than all
#: that is told.
_FLAGS = ("--rpc-port", "0", "--local-prefill-queue", "0")
_MOCK = ("--mock", "--mock-step-ms", "10")
_TIMED = {"x-baton-timings": "1"}
_NOT_SAMPLED = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are made."""

    traced: int | None = None  #: one of so many requests, 0: none; None: by no fleet that traces
    timed: int = 0  #: one of so many asks for timings, 0: none
    feed: bool = False

    def headers(self, number: int) -> dict[str, str]:
        """Of the request of that number."""
        sampled = self.traced is None or _turn(number, self.traced)
        return {
            **(_TIMED if _turn(number, self.timed) else {}),
            **({} if sampled else _NOT_SAMPLED),
        }


def _turn(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


WAYS: Mapping[str, Way] = {
    "off": Way(),
    "timings": Way(timed=1),
    "feed": Way(feed=True),
    "not sampled": Way(traced=0),
    "tenth": Way(traced=10),
    "trace": Way(traced=1),
    "all (tenth)": Way(traced=10, timed=10, feed=True),
    "all": Way(traced=1, timed=1, feed=True),
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


async def seconds(fleet: overload.Fleet, work: Awaitable[None]) -> float:
    """Of CPU that the fleet takes for ``work``."""
    before = cpu_seconds(fleet.gateway_pid)
    await work
    return cpu_seconds(fleet.gateway_pid) - before


async def instructions(fleet: overload.Fleet, work: Awaitable[None]) -> float:
    """That the fleet executes for ``work``. Raises RuntimeError where perf cannot count them."""
    watched = ",".join(map(str, fleet.pids.values()))
    perf = await asyncio.create_subprocess_exec(
        *("perf", "stat", "--field-separator", ",", "--event", "instructions", "--pid", watched),
        stderr=asyncio.subprocess.PIPE,
    )
    await asyncio.sleep(_ATTACHING)
    await work
    perf.send_signal(signal.SIGINT)
    _, told = await perf.communicate()
    counted = told.decode().partition(",")[0]
    if not counted.isdigit():
        raise RuntimeError(f"perf counts no instructions here: {told.decode()}")
    return float(counted)


#: What the fleet took for work.
Meter: TypeAlias = Callable[[overload.Fleet, Awaitable[None]], Awaitable[float]]


async def run(
    fleet: overload.Fleet, way: Way, requests: int, tokens: int, seed: int, meter: Meter
) -> float:
    """What a token takes, of so many requests. Raises RuntimeError when one fails."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(256) for _ in range(PROMPT)] for _ in range(requests)]
    turns = asyncio.Semaphore(AT_ONCE)
    async with (
        httpx.AsyncClient(base_url=fleet.url, timeout=120) as client,
        listening(fleet.admin, way.feed),
    ):
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def ask(number: int, prompt: list[int]) -> None:
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
            content = json.dumps({**body, "ignore_eos": True, "temperature": 0})
            headers = way.headers(number)
            async with turns:
                answer = await client.post("/v1/completions", content=content, headers=headers)
            if not answer.text.endswith("data: [DONE]\n\n") or '"error"' in answer.text:
                raise RuntimeError(f"a request failed: {answer.text[-300:]}")

        async def ask_all() -> None:
            await asyncio.gather(*(ask(*one) for one in enumerate(prompts)))
            await asyncio.sleep(_SETTLING)

        return await meter(fleet, ask_all()) / (requests * tokens)


#: Of each way, by start and round.
Found: TypeAlias = Mapping[str, Sequence[Sequence[float]]]


def interval(ratios: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Of their mean, 95 %; those of one start belong together."""
    rng = random.Random(0)

    def mean() -> float:
        starts = rng.choices(ratios, k=len(ratios))
        return fmean(fmean(rng.choices(rounds, k=len(rounds))) for rounds in starts)

    means = sorted(mean() for _ in range(_DRAWS))
    return means[round(0.025 * _DRAWS)], means[round(0.975 * _DRAWS) - 1]


async def measure(asked: argparse.Namespace) -> list[Record]:
    found: dict[str, list[list[float]]] = {name: [] for name in asked.ways}
    collector, rng, seeds = Collector(), random.Random(os.getpid()), count()
    size, meter = (asked.requests, asked.tokens), instructions if asked.instructions else seconds
    for _ in range(asked.starts):
        async with _fleets(collector, asked.model) as fleets:
            for running in fleets.values():  # warms up
                await run(running, WAYS["off"], *size, next(seeds), seconds)
            for name in asked.ways:
                found[name].append([])
            for _ in range(asked.rounds):
                for name in rng.sample(asked.ways, len(asked.ways)):
                    running = fleets[WAYS[name].traced is not None]
                    took = await run(running, WAYS[name], *size, next(seeds), meter)
                    found[name][-1].append(took)
    if any(WAYS[name].traced for name in asked.ways) and not collector.spans:
        raise RuntimeError("no span has reached the collector")
    unit = "k instructions" if asked.instructions else "us"
    return [record for name in asked.ways for record in _compared(name, found, unit)]


@asynccontextmanager
async def _fleets(
    collector: Collector, model: Path | None
) -> AsyncIterator[Mapping[bool, overload.Fleet]]:
    """One that traces, and one that does not."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(collecting(collector))
        flags = (*_FLAGS, *(_MOCK if model is None else ("--dtype", "bfloat16")))
        model, tracing = model or overload.CHECKPOINT, (*flags, "--otlp-endpoint", endpoint)
        yield {
            False: await stack.enter_async_context(overload.fleet(flags, model)),
            True: await stack.enter_async_context(overload.fleet(tracing, model)),
        }


def _compared(name: str, found: Found, unit: str) -> list[Record]:
    ratios = [
        [mine / theirs - 1 for mine, theirs in zip(*both, strict=True)]
        for both in zip(found[name], found["off"], strict=True)
    ]
    low, high = interval(ratios)
    params: dict[str, Param] = {"way": name}
    return [
        Record("CPU per token", fmean(map(fmean, found[name])) * _SCALE[unit], unit, params),
        Record("cost", fmean(map(fmean, ratios)) * 100, "%", params),
        Record("from", low * 100, "%", params),
        Record("to", high * 100, "%", params),
    ]


def _ways(text: str) -> list[str]:
    return list(dict.fromkeys(["off", *some_of(WAYS)(text)]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.telemetry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help="but off (default: all)")
    parser.add_argument("--starts", type=int, default=4, help="of the fleets (default: 4)")
    parser.add_argument("--rounds", type=int, default=6, help="of each start (default: 6)")
    parser.add_argument("--requests", type=int, default=128, help="of each way in a round")
    parser.add_argument("--tokens", type=int, default=128, help="of each request (default: 128)")
    parser.add_argument("--instructions", action="store_true", help="count these, not seconds")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint to compute with")
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    found = asyncio.run(measure(asked))
    rounds = f"{asked.starts} starts of {asked.rounds} rounds"
    model = asked.model or "mock workers"
    title = f"{model}: {asked.requests} requests of {asked.tokens} tokens, {rounds}"
    Console().print(records.table(title, found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
