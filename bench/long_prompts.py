"""``python -m bench.long_prompts``: the time between tokens while long prompts arrive.

A few answers are streamed through a gateway without a pause. For a while nothing else happens, for
another while long prompts come one after the other, each for two tokens: the two take turns, in
changing order. Real workers, with a model of SmolLM2-135M's shape and random weights, on two cores:

    apart       a prefill worker on core A, a decode worker on core B
    colocated   one worker, a thread on each core, with the default of --itl-target-ms
    unbounded   the same without it: prompts in chunks of 512 tokens

Gateway and client share the core that --front names with whoever else is there; what share of it
each of them took is told.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median

import aiohttp
from rich.console import Console

from bench import cores, machine, overload, records
from bench.arguments import some_of
from bench.itl import percentile
from bench.load.lag import Lag
from bench.overload import NAME
from bench.peers import words
from bench.records import Param, Record
from bench.shapes import SHAPES
from bench.usage import cpu_seconds

_MS = 1e3
#: Seconds until what has begun has settled.
_SETTLE = 1.0
#: Long prompts in a second, at most.
_MOST = 4
_COLOCATED = ("--colocated", "1", "--threads", "2")
FORMS: Mapping[str, tuple[str, ...]] = {
    "apart": ("--prefill", "1", "--decode", "1", "--threads", "1"),
    "colocated": _COLOCATED,
    "unbounded": (*_COLOCATED, "--itl-target-ms", "inf"),
}


@dataclass(slots=True)
class Watched:
    """Of one form, without and beside long prompts."""

    gaps: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    firsts: list[float] = field(default_factory=list)  #: seconds to long prompts' first tokens
    lag: list[float] = field(default_factory=list)  #: of the client's loop, seconds
    #: By process, seconds of a core per second, window by window beside long prompts.
    shares: dict[str, list[float]] = field(default_factory=dict)


class Watch:
    """One form, running."""

    def __init__(
        self, asked: argparse.Namespace, running: overload.Fleet, session: aiohttp.ClientSession
    ) -> None:
        self._asked = asked
        self._pids = {**running.pids, "client": os.getpid()}
        self._address = f"{running.url}/v1/completions"
        self._session = session
        self._random = Random(0)
        self._vocab = SHAPES[asked.model].vocab
        # Made before anything is watched: it is no part of what a system does.
        wanted = math.ceil(asked.rounds * (asked.window + _SETTLE) * _MOST)
        self._long = [self._body(asked.tokens, 2) for _ in range(wanted)]

    async def run(self) -> Watched:
        seen = Watched()
        with Lag(asyncio.get_running_loop()) as lag:
            for count in range(self._asked.rounds):
                async with self._streams() as came:
                    for beside in (False, True) if count % 2 else (True, False):
                        await self._window(beside, came, seen)
        seen.lag = lag.samples
        return seen

    async def _window(self, beside: bool, came: Sequence[list[float]], seen: Watched) -> None:
        arriving = asyncio.create_task(self._arrive(seen.firsts)) if beside else None
        await asyncio.sleep(_SETTLE)
        since, before = time.monotonic(), self._took()
        await asyncio.sleep(self._asked.window)
        until, after = time.monotonic(), self._took()
        if arriving is not None:
            for name, took in after.items():
                share = (took - before[name]) / (until - since)
                seen.shares.setdefault(name, []).append(share)
            if arriving.done():
                arriving.result()  # says what went wrong
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
        seen.gaps[beside] += gaps(came, since, until)

    def _took(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[Sequence[list[float]]]:
        """When each answer's events came, as they come. Raises RuntimeError when one ends."""
        asked = self._asked
        came: list[list[float]] = [[] for _ in range(asked.streams)]
        bodies = [self._body(asked.prompt, asked.longest) for _ in came]
        tasks = [asyncio.create_task(self._ask(*pair)) for pair in zip(bodies, came, strict=True)]
        try:
            while min(map(len, came)) < 4:
                _require_running(tasks)
                await asyncio.sleep(0.01)
            yield came
            _require_running(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _arrive(self, firsts: list[float]) -> None:
        """Long prompts, one after the other. Raises RuntimeError where they are done at once."""
        while True:
            if not self._long:
                raise RuntimeError(f"more than {_MOST} a second were done: make --tokens longer")
            sent, ticks = time.monotonic(), list[float]()
            await self._ask(self._long.pop(), ticks)
            firsts.append(ticks[0] - sent)

    def _body(self, tokens: int, output: int) -> bytes:
        """Of a request of random ids: no two prompts begin alike."""
        prompt = self._random.choices(range(self._vocab), k=tokens)
        body = {"model": NAME, "prompt": prompt, "max_tokens": output, "temperature": 0}
        return json.dumps({**body, "stream": True, "ignore_eos": True}).encode()

    async def _ask(self, body: bytes, ticks: list[float]) -> None:
        """Raises RuntimeError where the answer is an error."""
        async with self._session.post(self._address, data=body) as answer:
            async for line in answer.content:
                if answer.status != 200 or b'"error"' in line:
                    raise RuntimeError(f"HTTP {answer.status}: {line.decode()}")
                if line.startswith(b"data: {"):
                    ticks.append(time.monotonic())


def _require_running(streams: Sequence[asyncio.Task[None]]) -> None:
    """Raises RuntimeError, or what has ended one of them."""
    for stream in streams:
        if stream.done():
            stream.result()
            raise RuntimeError("a stream has had all of its tokens: --longest is too short")


def gaps(came: Sequence[Sequence[float]], since: float, until: float) -> list[float]:
    """Seconds between events of one stream that both came in that time, of all of them."""
    return [
        after - before
        for ticks in came
        for before, after in pairwise(ticks)
        if since <= before and after <= until
    ]


async def measure(asked: argparse.Namespace, form: str) -> Watched:
    """Raises RuntimeError where something does not start, or fails."""
    model = ("--model", str(words.served(SHAPES[asked.model])), "--dtype", "bfloat16")
    first, second = cores.first(2)
    front = first if asked.front == "A" else second
    where = {"p0": first, "d0": second, "gateway": front}
    async with overload.fleet((*model, *FORMS[form])) as running:
        for name, pid in running.pids.items():
            if name in where:
                pin(pid, where[name])
        pin(os.getpid(), front)
        gc.collect()
        gc.disable()
        try:
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(
                timeout=timeout, headers={"content-type": "application/json"}
            ) as session:
                return await Watch(asked, running, session).run()
        finally:
            gc.enable()
            for thread in _threads(os.getpid()):
                os.sched_setaffinity(thread, {first, second})


def pin(pid: int, core: int) -> None:
    """Every thread that it has, and with them those to come."""
    for thread in _threads(pid):
        with suppress(ProcessLookupError):  # it has ended since it was seen
            cores.pin(thread, core)


def _threads(pid: int) -> Iterator[int]:
    return (int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


def evaluate(form: str, seen: Watched, told: Mapping[str, Param]) -> list[Record]:
    """The records of one form. Raises ValueError where no token came."""
    params: dict[str, Param] = {"form": form, **told}
    made: list[Record] = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        without, beside = (percentile(seen.gaps[which], share) for which in (False, True))
        made.append(Record(f"{name} without", without * _MS, "ms", params))
        made.append(Record(f"{name} beside", beside * _MS, "ms", params))
        made.append(Record(f"{name} ratio", beside / without, "ratio", params))
    if seen.firsts:
        made.append(Record("TTFT of long", median(seen.firsts) * _MS, "ms", params))
    made.append(Record("client's lag p99", percentile(seen.lag, 0.99) * _MS, "ms", params))
    for name, shares in seen.shares.items():
        made.append(Record(f"core for {name}", median(shares), "ratio", params))
    return made


def draw(path: Path, title: str, seen: Mapping[str, Watched]) -> None:
    """How many gaps were longer than so much. Raises OSError, ValueError for a format unknown."""
    from matplotlib.figure import Figure  # here: only who draws needs it

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for colour, (form, watched) in zip(
        ("#0072B2", "#D55E00", "#009E73"), seen.items(), strict=False
    ):
        for beside, style, when in ((False, "--", "without"), (True, "-", "with")):
            values = sorted(watched.gaps[beside])
            longer = [1 - n / len(values) for n in range(len(values))]
            label = f"{form}, {when} long prompts"
            axes.plot([value * _MS for value in values], longer, style, color=colour, label=label)
    axes.axhline(0.01, color="#555555", lw=1, ls=(0, (2, 2)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds between tokens")
    axes.set_ylabel("share that was longer (dotted: 1 %)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where apart misses the goal, 2 where something failed."""
    asked, console = _parse(argv), Console(width=200)
    title = (
        f"{asked.streams} streams of prompts of {asked.prompt} tokens beside prompts of "
        f"{asked.tokens}; {asked.rounds} times {asked.window:g} s with and without; gateway and "
        f"client on core {asked.front}; {SHAPES[asked.model].name}, bfloat16; {machine.describe()}"
    )
    seen: dict[str, Watched] = {}
    try:
        for form in asked.forms:
            seen[form] = asyncio.run(measure(asked, form))
        made = [one for form in seen for one in evaluate(form, seen[form], {})]
        console.print(title, markup=False)
        console.print(records.table("Between tokens", made))
        if asked.json is not None:
            told = {"of": title}
            records.write(
                asked.json, [one for form in seen for one in evaluate(form, seen[form], told)]
            )
        if asked.plot is not None:
            draw(asked.plot, title, seen)
    except (RuntimeError, OSError, ValueError, aiohttp.ClientError) as error:
        print(f"bench.long_prompts: {error}", file=sys.stderr)
        return 2
    ratios = [
        one.value for one in made if one.name == "p99 ratio" and one.params["form"] == "apart"
    ]
    return int(any(ratio > asked.goal for ratio in ratios))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.long_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--forms", type=some_of(FORMS), default=[*FORMS], help="some of those above, a,b")
    add("--front", choices=("A", "B"), default="B", help="gateway's and client's core (B)")
    add("--streams", type=int, default=4, help="answers under way (default: %(default)s)")
    add("--prompt", type=int, default=128, help="tokens of theirs (default: %(default)s)")
    add("--longest", type=int, default=4096, help="tokens that each may get (default: %(default)s)")
    add("--tokens", type=int, default=2048, help="of a long prompt (default: %(default)s)")
    add("--window", type=float, default=6.0, help="seconds watched at a time (%(default)g)")
    add("--rounds", type=int, default=6, help="windows with, and as many without (%(default)s)")
    add("--goal", type=float, default=1.2, help="of the ratio of p99, apart (%(default)g)")
    add("--model", choices=[*SHAPES], default=next(iter(SHAPES)), help="shape of the model")
    add("--json", type=Path, metavar="FILE", help="where to write the records")
    add("--plot", type=Path, metavar="FILE", help="where to draw how long gaps were")
    asked = parser.parse_args(argv)
    if min(asked.streams, asked.prompt, asked.longest, asked.tokens, asked.rounds) < 1:
        parser.error("every number is at least 1")
    return asked


if __name__ == "__main__":
    sys.exit(main())
