"""``python -m bench.overload``: what a gateway serves when more is asked than its fleet can do.

Mock workers, whose time is a cost model's, so that the fleet's capacity is known and the gateway
is what is measured. Requests arrive at random (Poisson) at multiples of the capacity, whatever
became of those before. Goodput is what was answered whole and in time. At four times the capacity
it should be what it is at its peak, the queue bounded, and the rest refused at once.

    goodput        requests answered per second, their first tokens within the deadline
    refused        429, in milliseconds from connecting to the answer: median and 99th percentile
    late           504: admitted, but their first token did not come in time
    queue          prompt tokens without a first token, at most
    resident       of the gateway, after the load
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

from rich.console import Console

from bench import records
from bench.records import Param, Record

CHECKPOINT = Path(__file__).parents[1] / "model" / "demo" / "checkpoint"
NAME = "overloaded"
#: Seconds between looks at the queue.
_LOOK = 0.2
#: Each request's: short answers, as it is prefill that is overloaded.
PROMPT, OUTPUT = 50, 4
#: Microseconds per prompt token on the one prefill worker, and what that comes to.
PREFILL_US = 1000
CAPACITY = 1e6 / PREFILL_US / PROMPT  #: requests per second
#: Seconds allowed for a first token.
DEADLINE = 2.0

FLAGS = (
    *("--mock", "--mock-prefill-us", str(PREFILL_US), "--first-token-timeout", str(DEADLINE)),
    *("--local-prefill-queue", "0"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request."""

    status: int
    ended: float  #: loop time
    seconds: float


@dataclass(slots=True)
class Phase:
    """What was seen while requests arrived at one rate."""

    rate: float  #: requests per second
    began: float = 0.0  #: loop times: counting begins ...
    ended: float = 0.0  #: ... and arrivals end
    outcomes: list[Outcome] = field(default_factory=list)
    queued: float = 0.0  #: prompt tokens, at most

    @property
    def goodput(self) -> float:
        """Per second."""
        done = [o for o in self.outcomes if o.status == 200 and self.began <= o.ended < self.ended]
        return len(done) / (self.ended - self.began)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def refusals(self) -> tuple[float, float]:
        """Seconds: median, 99th percentile; 0 where none was refused."""
        times = [outcome.seconds for outcome in self.outcomes if outcome.status == 429]
        if len(times) < 2:
            return 0.0, 0.0
        cuts = quantiles(times, n=100)
        return cuts[49], cuts[98]


async def offer(url: str, admin: str, model: str, rate: float, seconds: float, seed: int) -> Phase:
    """Requests at ``rate`` per second for so long, counted from a deadline's time on."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    phase = Phase(rate)
    began = loop.time()
    phase.began, phase.ended = began + DEADLINE, began + DEADLINE + seconds
    looking = asyncio.create_task(_watch_queue(admin, phase))
    try:
        async with asyncio.TaskGroup() as group:
            due = began
            while (due := due + rng.expovariate(rate)) < phase.ended:
                await asyncio.sleep(max(0.0, due - loop.time()))
                prompt = [rng.randrange(256) for _ in range(PROMPT)]
                group.create_task(_ask(url, model, prompt, phase))
    finally:
        looking.cancel()
    return phase


async def _ask(url: str, model: str, prompt: list[int], phase: Phase) -> None:
    loop = asyncio.get_running_loop()
    body = {"model": model, "prompt": prompt, "max_tokens": OUTPUT, "ignore_eos": True}
    began = loop.time()
    status, _ = await fetch(f"{url}/v1/completions", json.dumps(body).encode())
    phase.outcomes.append(Outcome(status, loop.time(), loop.time() - began))


async def _watch_queue(admin: str, phase: Phase) -> None:
    while True:
        _, text = await fetch(f"{admin}/metrics")
        found = re.search(r"^baton_queue_tokens (\S+)$", text.decode(), re.M)
        if found is not None:
            phase.queued = max(phase.queued, float(found[1]))
        await asyncio.sleep(_LOOK)


async def fetch(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """GET or, with a JSON body, POST on a connection of its own: status and body."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        method = "GET" if body is None else "POST"
        head = f"{method} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + (body or b""))
        answer = await reader.read()
    finally:
        writer.close()
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split(None, 2)[1]), content


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running ``baton up``."""

    url: str
    admin: str
    pids: Mapping[str, int]  #: by name: "gateway", "p0", "d0"

    @property
    def gateway_pid(self) -> int:
        return self.pids["gateway"]


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@asynccontextmanager
async def fleet(flags: Sequence[str], model: Path = CHECKPOINT) -> AsyncIterator[Fleet]:
    """Start a gateway and workers as ``flags`` say; stop them afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton", "up", "--model", str(model)),
        *("--served-model-name", NAME, "--port", "0", "--admin-port", "0", "--rpc-port", "0"),
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        found = await _announced(process.stdout)
        # What it prints on must not fill the pipe.
        draining = asyncio.create_task(process.stdout.read())
        yield found
        draining.cancel()
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _announced(lines: asyncio.StreamReader) -> Fleet:
    """Raises RuntimeError with what was printed when it ends before it is ready."""
    patterns = (r"ready at (\S+)/v1", r"state: (\S+)/cluster")
    printed = ""
    while line := (await lines.readline()).decode():
        printed += line
        found = [re.search(pattern, printed) for pattern in patterns]
        if all(found):
            url, admin = (match[1] for match in found if match is not None)
            pids = dict(re.findall(r"baton \| (\w+) ready on \S+, pid (\d+)", printed))
            return Fleet(url, admin, {name: int(pid) for name, pid in pids.items()})
    raise RuntimeError(f"baton up ended before it was ready:\n{printed}")


async def measure(factors: Sequence[float], seconds: float, flags: Sequence[str]) -> list[Record]:
    """Each factor of the capacity in turn."""
    found: list[Record] = []
    async with fleet((*FLAGS, *flags)) as running:
        await offer(running.url, running.admin, NAME, CAPACITY / 4, 2.0, 0)  # measures its pace
        for seed, factor in enumerate(factors, start=1):
            rate = factor * CAPACITY
            phase = await offer(running.url, running.admin, NAME, rate, seconds, seed)
            found += evaluate(phase, resident(running.gateway_pid))
    return found


def evaluate(phase: Phase, memory: int) -> list[Record]:
    params: dict[str, Param] = {"offered, of capacity": round(phase.rate / CAPACITY, 2)}
    median, worst = phase.refusals
    total = len(phase.outcomes)
    values = (
        ("goodput", phase.goodput, "1/s"),
        ("refused", phase.statuses[429] / total, "ratio"),
        ("late", phase.statuses[504] / total, "ratio"),
        ("refusal, p50", median * 1e3, "ms"),
        ("refusal, p99", worst * 1e3, "ms"),
        ("queue", phase.queued, "tokens"),
        ("resident", memory / 2**20, "MiB"),
    )
    return [Record(name, value, unit, params) for name, value, unit in values]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--factors", default="0.5,0.8,1,1.25,2,4", help="of capacity, in turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each (default: 20)")
    parser.add_argument("--num-blocks", default="256", help="of KV per worker (default: 256)")
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    factors = [float(factor) for factor in asked.factors.split(",")]
    found = asyncio.run(measure(factors, asked.seconds, ("--num-blocks", asked.num_blocks)))
    title = f"capacity {CAPACITY:g}/s of {PROMPT} prompt tokens, {DEADLINE:g} s to a first token"
    Console().print(records.table(title, found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
