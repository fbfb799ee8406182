"""Clients: requests over HTTP, and when the tokens of each came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

from baton.identity import CompatibilityClass
from baton.sampling import SamplingSpec
from bench.pair import PeerFailed
from bench.recovery.fleet import Fleet
from model.engine.mock_runner import expected_tokens

_LOOK = 0.02
#: Seconds for one stream in all.
_PATIENCE = 300.0


class Stream:
    """One answer as it comes."""

    def __init__(self, fleet: Fleet, prompt: Sequence[int], max_tokens: int) -> None:
        self.asked = time.monotonic()
        self.came: list[float] = []  #: ``time.monotonic`` of each event with tokens
        self.tokens: list[int] = []
        self._prompt, self._max_tokens = tuple(prompt), max_tokens
        body = {
            "model": fleet.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        self.task = asyncio.create_task(self._follow(fleet.api, json.dumps(body).encode()))

    async def _follow(self, port: int, body: bytes) -> None:
        """To the end. Raises PeerFailed when it is not whole."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            async with asyncio.timeout(_PATIENCE):
                said = ""
                while line := await reader.readline():
                    said = line.decode() if line.strip() else said
                    if line.startswith(b"data: {"):
                        self._take(json.loads(line.removeprefix(b"data: ")))
        finally:
            writer.transport.abort()
        if len(self.tokens) != self._max_tokens:
            raise PeerFailed(
                f"a stream ended after {len(self.tokens)} tokens; it said last: {said}"
            )

    def _take(self, event: dict[str, list[dict[str, list[int]]]]) -> None:
        for choice in event.get("choices", ()):
            if new := choice.get("token_ids"):
                self.came.append(time.monotonic())
                self.tokens += new

    def require_exact(self, compatibility: CompatibilityClass) -> None:
        """Raises PeerFailed unless it has the tokens of an undisturbed run."""
        spec = SamplingSpec(temperature=0.0, max_tokens=self._max_tokens, ignore_eos=True)
        if self.tokens != expected_tokens(self._prompt, spec, compatibility):
            raise PeerFailed("a stream has other tokens than an undisturbed one")

    async def settled(self) -> Stream:
        """Itself, once it has ended. Raises PeerFailed."""
        await self.task
        return self

    @property
    def ttft(self) -> float:
        """Seconds."""
        return self.came[0] - self.asked

    def gap(self, since: float) -> float:
        """Seconds of the longest wait for a token that ended after ``since``."""
        return max((b - a for a, b in pairwise(self.came) if b > since), default=0.0)


def prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(256) for _ in range(tokens)]


@asynccontextmanager
async def running(
    fleet: Fleet, prompts: Sequence[Sequence[int]], max_tokens: int, begun: int
) -> AsyncIterator[list[Stream]]:
    """A stream for each prompt, of which each has so many tokens; cancelled after the body."""
    streams = [Stream(fleet, each, max_tokens) for each in prompts]
    try:
        while min(len(stream.tokens) for stream in streams) < begun:
            for stream in streams:
                if stream.task.done():
                    await stream.task
            await asyncio.sleep(_LOOK)
        yield streams
    finally:
        for stream in streams:
            stream.task.cancel()
        await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
