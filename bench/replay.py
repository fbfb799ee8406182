"""``python -m bench.replay``: a trace's conversations against any OpenAI endpoint, as they came.

Prompts are token ids with the trace's own shared prefixes (``bench/trace.py`` has the format),
shorter and faster by stated factors. Requests are sent when the trace says, whatever became of the
others. Measured are

    hit         the share of prompt tokens that the endpoint says it had cached (usage)
    reusable    what one cache for all, without an end, would have had
    TTFT        seconds from sending a request to the first event of its answer
    imbalance   with --cluster: the most that a worker had to do, as a multiple of the mean of its
                role, over the whole run; prompt tokens waiting for prefill, sequences for decode
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from rich.console import Console

from bench import records, trace
from bench.records import Param, Record
from bench.trace import BLOCK, Request, Scale, TraceError

#: Seconds between looks at the workers.
_LOOK = 0.1
_TIMEOUT = httpx.Timeout(300.0)
_SESSION = "x-baton-session"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    ttft: float  #: seconds
    prompt: int  #: tokens
    cached: int  #: of these


@dataclass(slots=True)
class Balance:
    """Sums over looks at the workers of one role."""

    most: float = 0.0
    mean: float = 0.0

    def add(self, work: Sequence[float]) -> None:
        if work:
            self.most += max(work)
            self.mean += sum(work) / len(work)

    @property
    def ratio(self) -> float:
        return self.most / self.mean if self.mean else 1.0


@dataclass(slots=True)
class Outcome:
    """Of a whole run."""

    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    balances: dict[str, Balance] = field(default_factory=dict)  #: by role

    def records(self, params: dict[str, Param], reusable: float) -> list[Record]:
        def record(name: str, value: float, unit: str) -> Record:
            return Record(name, value, unit, params)

        prompt = sum(answer.prompt for answer in self.answers)
        cached = sum(answer.cached for answer in self.answers)
        ttft = sorted(1e3 * answer.ttft for answer in self.answers)
        cuts = quantiles(ttft, n=100, method="inclusive")
        return [
            record("hit", cached / prompt, "ratio"),
            record("reusable", reusable, "ratio"),
            *(record(f"TTFT p{p}", cuts[p - 1], "ms") for p in (50, 90, 99)),
            *(
                record(f"imbalance {role}", balance.ratio, "ratio")
                for role, balance in sorted(self.balances.items())
            ),
        ]


class Replay:
    """One run."""

    def __init__(self, client: httpx.AsyncClient, model: str, *, sessions: bool) -> None:
        self._client = client
        self._model = model
        self._sessions = sessions
        self.outcome = Outcome()

    async def run(self, asked: Iterable[Request], cluster: str | None) -> None:
        """Every request at its time; returns when all are answered."""
        looking = None if cluster is None else asyncio.create_task(self._look(cluster))
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for request in asked:
                    await asyncio.sleep(max(0.0, began + request.at - time.monotonic()))
                    group.create_task(self._ask(request))
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)

    async def _ask(self, request: Request) -> None:
        body = {
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {_SESSION: str(request.conversation)} if self._sessions else {}
        try:
            self.outcome.answers.append(await self._stream(body, headers))
        except (httpx.HTTPError, ValueError) as error:
            self.outcome.failures[str(error) or repr(error)] += 1

    async def _stream(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        """Raises ValueError for an answer that is an error, or has no usage."""
        sent, first, usage = time.monotonic(), 0.0, None
        post = self._client.stream("POST", "/v1/completions", json=body, headers=headers)
        async with post as answer:
            if answer.status_code != 200:
                raise ValueError(f"HTTP {answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                first = first or time.monotonic()
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                usage = event.get("usage") or usage
        if usage is None:
            raise ValueError("the answer has no usage")
        details = usage.get("prompt_tokens_details") or {}
        return Answer(first - sent, usage["prompt_tokens"], details.get("cached_tokens", 0))

    async def _look(self, cluster: str) -> None:
        while True:
            said = (await self._client.get(cluster)).json()
            work: dict[str, list[float]] = {"prefill": [], "decode": []}
            for worker in said["workers"]:
                load = worker.get("load", {})
                if "prefill" in worker.get("roles", ()):
                    work["prefill"].append(load["queued_tokens"])
                if "decode" in worker.get("roles", ()):
                    work["decode"].append(load["running"] + load["waiting"])
            for role, amounts in work.items():
                self.outcome.balances.setdefault(role, Balance()).add(amounts)
            await asyncio.sleep(_LOOK)


async def replay(options: argparse.Namespace, asked: Sequence[Request]) -> Outcome:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.url, timeout=_TIMEOUT, limits=limits) as client:
        run = Replay(client, options.model, sessions=options.sessions)
        await run.run(asked, options.cluster)
        return run.outcome


def main() -> int:
    """Exit status: 1 when a request failed, 2 for a trace that cannot be read."""
    options = _parser().parse_args()
    scale = Scale(
        length=1 / options.length,
        output=1 / options.output,
        speed=options.speed,
        vocabulary=options.vocabulary,
    )
    try:
        lines = trace.read(options.trace, options.requests)
    except (OSError, TraceError) as error:
        print(f"{options.trace}: {error}", file=sys.stderr)
        return 2
    kept = (one for one in trace.requests(lines, scale) if len(one.prompt) <= options.longest)
    asked = list(kept)
    outcome = asyncio.run(replay(options, asked))
    for failure, count in outcome.failures.items():
        print(f"{count} requests failed: {failure}", file=sys.stderr)
    if not outcome.answers:
        return 1
    params: dict[str, Param] = {"run": options.label, "requests": len(outcome.answers)}
    found = outcome.records(params, trace.most_reusable(asked, options.block_size))
    title = (
        f"{options.trace.name}: the first {len(lines)} requests, {len(lines) - len(asked)} of them "
        f"left out as longer than {options.longest}; prompts 1/{scale.length}, answers "
        f"1/{scale.output}, time {scale.speed:g} times as fast"
    )
    Console().print(records.table(title, found))
    if options.json is not None:
        records.write(options.json, found)
    return 1 if outcome.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, help="file of JSON lines (bench/trace.py)")
    add("--url", default="http://127.0.0.1:8000", help="of the endpoint (default: %(default)s)")
    add("--model", required=True, help="as the endpoint calls it")
    add("--cluster", help="URL of a Baton gateway's /cluster; without it no imbalance")
    add("--requests", type=int, default=400, help="the first N (default: %(default)s)")
    add("--length", type=_divisor, default=16, help="prompts are 1/N as long (default: 16)")
    add("--output", type=int, default=16, help="answers are 1/N as long (default: 16)")
    add("--speed", type=float, default=1.0, help="time passes N times as fast (default: 1)")
    add("--longest", type=int, default=2**20, help="longer prompts are left out (default: 2^20)")
    add("--vocabulary", type=int, default=256, help="ids are below N (default: 256)")
    add("--block-size", type=int, default=16, help="of the workers, for reusable (default: 16)")
    add("--sessions", action="store_true", help=f"name the conversation in {_SESSION}")
    add("--label", default="", help="of the line that is printed")
    add("--json", type=Path, help="store what was measured")
    return parser


def _divisor(text: str) -> int:
    if int(text) not in (value := [n for n in range(1, BLOCK + 1) if BLOCK % n == 0]):
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(map(str, value))}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
