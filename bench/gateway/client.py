"""``python -m bench.gateway.client``: so many streams, read as cheaply as Python can.

Closed loop: each connection asks again when it has its answer. What is counted begins once every
stream has begun, and some time later. Prints one line of JSON, see ``Seen``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import cast

import httptools
import uvloop

from bench.gateway.steps import Clock

#: The text of an event of either server, in one piece. Bare letters need no JSON parser.
_TEXT = re.compile(rb'"text": ?"([0-9A-Za-z]+)"')
#: Streams that wait for their first token at a time.
_OPENING = 500


@dataclass(slots=True)
class Seen:
    """Of the time that counts."""

    seconds: float
    tokens: int
    events: int  #: with text; fewer than tokens where a server sent several in one
    answers: int  #: that ended
    latency_p50: float  #: seconds from a token's making to its arrival here
    latency_p99: float
    cpu: dict[str, float]  #: seconds that each process took
    resident: dict[str, list[float]]  #: bytes that each had before the first stream, and at the end


@dataclass(slots=True)
class Counts:
    """Filled by every stream."""

    tokens: int = 0
    events: int = 0
    answers: int = 0
    begun: int = 0  #: streams that have had their first text
    latencies: list[float] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One connection, which asks again and again."""

    def __init__(self, request: bytes, counts: Counts, clock: Clock) -> None:
        self._request = request
        self._counts = counts
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""  #: of an event whose end is not here
        self._first = True  #: no text of this answer is here
        self.begun = asyncio.Event()
        self.failed: str = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        assert self._transport is not None, "connected"
        self._first, self._rest = True, b""
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}")

    def on_body(self, body: bytes) -> None:
        data = self._rest + body
        if self._parser.get_status_code() != 200 or b'"error"' in data:
            self._fail(data.decode(errors="replace"))
        end = data.rfind(b"\n\n")
        self._rest = data[end + 2 :] if end >= 0 else data
        self._texts(data[: end + 2] if end >= 0 else b"")

    def _texts(self, data: bytes) -> None:
        now = time.monotonic()
        for text in _TEXT.findall(data):
            self._counts.events += 1
            self._counts.tokens += len(text)
            if self._first:  # it was sent between steps
                self._first = False
                self._begin()
                continue
            self._counts.latencies.append(now - self._clock.sent(chr(text[0])))

    def _begin(self) -> None:
        if not self.begun.is_set():
            self._counts.begun += 1
            self.begun.set()

    def on_message_complete(self) -> None:
        for text in _TEXT.findall(self._rest):  # an answer that is no stream
            self._counts.tokens += len(text)
            self._begin()
        self._counts.answers += 1
        if not self._parser.should_keep_alive():
            self._fail("the server closes its connections")
        self._ask()

    def _fail(self, why: str) -> None:
        self.failed = self.failed or why
        self.begun.set()


def cpu_seconds(pid: int) -> float:
    """That a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def request(address: str, model: str, tokens: int, *, stream: bool) -> bytes:
    body = {
        "model": model,
        "prompt": "Once upon a time there was a cat.",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def watch(
    address: str,
    wanted: bytes,
    streams: int,
    clock: Clock,
    pids: Mapping[str, int],
    *,
    warm: float,
    seconds: float,
) -> Seen:
    """Raises RuntimeError when a stream fails."""
    before = {name: resident(pid) for name, pid in pids.items()}
    counts, turns = Counts(), asyncio.Semaphore(_OPENING)
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()

    async def begin() -> Stream:
        async with turns:
            _, stream = await loop.create_connection(
                lambda: Stream(wanted, counts, clock), host, int(port)
            )
            await stream.begun.wait()
        return stream

    opened = await asyncio.gather(*(begin() for _ in range(streams)))
    await asyncio.sleep(warm)
    tokens, events, answers = counts.tokens, counts.events, counts.answers
    counts.latencies.clear()
    taken = {name: cpu_seconds(pid) for name, pid in pids.items()}
    began = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    if failed := next((stream.failed for stream in opened if stream.failed), ""):
        raise RuntimeError(f"a stream failed: {failed[:300]}")
    cuts = quantiles(counts.latencies, n=100) if len(counts.latencies) > 1 else [0.0] * 99
    return Seen(
        seconds=took,
        tokens=counts.tokens - tokens,
        events=counts.events - events,
        answers=counts.answers - answers,
        latency_p50=cuts[49],
        latency_p99=cuts[98],
        cpu={name: cpu_seconds(pid) - taken[name] for name, pid in pids.items()},
        resident={name: [before[name], resident(pid)] for name, pid in pids.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gateway.client")
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of each answer")
    parser.add_argument("--whole", action="store_true", help="answers are no streams")
    parser.add_argument("--warm", type=float, required=True, help="seconds before those that count")
    parser.add_argument("--seconds", type=float, required=True, help="that count")
    parser.add_argument("--clock", type=Path, required=True, help="file of times: see steps.py")
    parser.add_argument("--pids", type=json.loads, default={}, help="to watch: JSON, by name")
    asked = parser.parse_args()
    pids: dict[str, int] = {**asked.pids, "client": os.getpid()}
    wanted = request(asked.address, asked.model, asked.tokens, stream=not asked.whole)
    watching = watch(
        asked.address,
        wanted,
        asked.streams,
        Clock(asked.clock),
        pids,
        warm=asked.warm,
        seconds=asked.seconds,
    )
    seen = uvloop.run(watching)
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
