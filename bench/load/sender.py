"""``python -m bench.load.sender``: a process that sends requests and writes down what comes.

It takes JSON lines and gives JSON lines:

    <- {"address": ..., "timeout": ..., "count": 2}
    <- {"due": 0.25, "headers": {...}, "body": "..."}      one line per request
    -> {"ready": true}
    <- {"start": 5123.7, "concurrency": null}              the monotonic clock's
    -> {"answer": {...}}, ..., {"lag": [...]}, {"cpu": ...}

A request is sent when it is due, whatever became of those before; with a concurrency, when one of
so many is done with its last. Answers are written by a thread, so that a full pipe delays nobody.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import aiohttp
import uvloop

from bench.load.lag import Lag
from bench.load.raw import OK, Answer, line

#: Lags in one line.
_LAGS = 1000


class _Failed(Exception):
    """The endpoint answered, but with an error."""


@dataclass(frozen=True, slots=True)
class Due:
    """A request, ready to go."""

    at: float
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Job:
    address: str
    timeout: float  #: seconds for a whole answer
    requests: list[Due]

    @classmethod
    def read(cls, lines: Iterator[bytes]) -> Job:
        head = json.loads(next(lines))
        asked = (json.loads(next(lines)) for _ in range(head["count"]))
        found = [Due(one["due"], one["headers"], one["body"].encode()) for one in asked]
        return cls(head["address"], head["timeout"], found)


class Sending:
    """One run of a job."""

    def __init__(self, job: Job, start: float, out: SimpleQueue[str | None]) -> None:
        self._job = job
        self._start = start
        self._out = out

    async def run(self, concurrency: int | None) -> None:
        """Returns when all is answered."""
        timeout = aiohttp.ClientTimeout(total=self._job.timeout)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.sleep(max(0.0, self._start - time.monotonic()))
            async with asyncio.TaskGroup() as group:
                if concurrency is None:
                    for request in self._job.requests:
                        await asyncio.sleep(max(0.0, request.at - self._now()))
                        group.create_task(self._ask(session, request, request.at))
                else:
                    left = iter(self._job.requests)
                    for _ in range(concurrency):
                        group.create_task(self._in_turn(session, left))

    async def _in_turn(self, session: aiohttp.ClientSession, left: Iterator[Due]) -> None:
        for request in left:
            await self._ask(session, request, self._now())

    async def _ask(self, session: aiohttp.ClientSession, request: Due, due: float) -> None:
        seen, sent, status = _Seen(), self._now(), OK
        post = session.post(self._job.address, data=request.body, headers=dict(request.headers))
        try:
            async with post as answer:
                if answer.status != 200:
                    text = await answer.text(errors="replace")
                    raise _Failed(f"HTTP {answer.status}: {' '.join(text.split())[:200]}")
                async for piece in answer.content.iter_any():
                    seen.take(piece, self._now())
            seen.check()
        except _Failed as error:
            status = str(error)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            status = f"{type(error).__name__}: {error}"
        usage = seen.usage or {}
        details = usage.get("prompt_tokens_details") or {}
        made = Answer(
            due,
            sent,
            tuple(seen.ticks),
            self._now(),
            usage.get("completion_tokens", len(seen.ticks)),
            usage.get("prompt_tokens"),
            details.get("cached_tokens"),
            status,
        )
        self._out.put(line(made))

    def _now(self) -> float:
        return time.monotonic() - self._start


class _Seen:
    """Of one answer's events. An event is one line of data, as every OpenAI endpoint writes it."""

    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.usage: dict[str, Any] | None = None
        self._rest = b""
        self._done = False

    def take(self, piece: bytes, now: float) -> None:
        """Raises _Failed for an error, ValueError for what is no JSON."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for text in lines:
            name, _, data = text.partition(b":")
            if name == b"data":
                self._event(data.strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise _Failed(f"error event: {event['error'].get('message', event['error'])}")
        if any(_shows(choice) for choice in event.get("choices") or ()):
            self.ticks.append(now)
        self.usage = event.get("usage") or self.usage

    def check(self) -> None:
        """Raises _Failed where it is no whole answer."""
        if not self._done:
            raise _Failed("the answer was cut off: no [DONE]")
        if not self.ticks:
            raise _Failed("the answer shows no token: no text and no ids")


def _shows(choice: Mapping[str, Any]) -> bool:
    """Some of the answer, and not only a role or why it ended."""
    delta = choice.get("delta") or {}
    shown = (choice.get("text"), choice.get("token_ids"), delta.get("content"))
    return any(shown) or any(
        delta.get(name) for name in ("reasoning_content", "reasoning", "tool_calls", "token_ids")
    )


def _write(out: SimpleQueue[str | None]) -> None:
    while (text := out.get()) is not None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


async def _send(job: Job, start: float, concurrency: int | None) -> None:
    out: SimpleQueue[str | None] = SimpleQueue()
    writing = Thread(target=_write, args=(out,))
    writing.start()
    worked, began = time.process_time(), time.monotonic()
    try:
        with Lag(asyncio.get_running_loop()) as lag:
            await Sending(job, start, out).run(concurrency)
        for first in range(0, len(lag.samples), _LAGS):
            rounded = [round(one, 6) for one in lag.samples[first : first + _LAGS]]
            out.put(json.dumps({"lag": rounded}))
        share = (time.process_time() - worked) / (time.monotonic() - began)
        out.put(json.dumps({"cpu": round(share, 4)}))
    finally:
        out.put(None)
        writing.join()


def main() -> None:
    lines = iter(sys.stdin.buffer.readline, b"")
    job = Job.read(lines)
    gc.collect()
    gc.disable()  # what a run leaves behind is small; a collection would be a lag
    print(json.dumps({"ready": True}), flush=True)
    go = json.loads(next(lines))
    uvloop.run(_send(job, go["start"], go["concurrency"]))


if __name__ == "__main__":
    main()
