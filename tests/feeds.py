"""A gateway's feed as a test says it, and a view that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton import live
from baton.top.feed import Said
from baton.top.orders import OrderFailed

BEGAN = 1_795_258_800.0  #: Unix seconds


def worker(id: str, role: str = "decode", **said: Any) -> live.Worker:
    """A healthy one; ``said`` goes over that."""
    defaults: dict[str, Any] = {
        "at": BEGAN,
        "address": f"10.0.0.{int(id[:2], 16)}:9001",
        "roles": ["decode", "prefill"] if role == "both" else [role],
        "possible_roles": ["decode", "prefill"],
        "state": "healthy",
        "reason": "",
        "model": "toy",
        "max_running": 64,
        "blocks": live.Blocks(free=60, cached=20, owned=20),
    }
    return live.Worker(id=id, **{**defaults, **said})


def gateway(**said: Any) -> live.Gateway:
    defaults: dict[str, Any] = {
        "at": BEGAN,
        "instance": "9c8d7e6f",
        "model": "toy",
        "placement": "least-queued",
        "queued_tokens": 0,
        "waiting": 0,
        "open": 0,
        "tokens_per_s": 0.0,
    }
    return live.Gateway(**{**defaults, **said})


def snapshot(
    *workers: live.Worker, requests: Sequence[live.Request] = (), **said: Any
) -> live.Snapshot:
    """``said`` of the gateway."""
    return live.Snapshot(
        at=BEGAN, gateway=gateway(**said), workers=list(workers), requests=list(requests)
    )


def queued(request: str, *, at: float = BEGAN, **said: Any) -> live.Queued:
    defaults = {"prompt_tokens": 812, "max_tokens": 256, "choices": 1, "priority": 0}
    return live.Queued(request=request, at=at, **{**defaults, **said})


def placed(request: str, decode: str, prefill: str | None = None, **said: Any) -> live.Placed:
    defaults: dict[str, Any] = {
        "at": BEGAN,
        "attempt": 0,
        "choices": [0],
        "policy": "least-queued",
        "tokens": 812,
        "cached": 0,
        "waited_ms": 1.0,
    }
    return live.Placed(request=request, decode=decode, prefill=prefill, **{**defaults, **said})


def first_token(request: str, ttft_ms: float, *, at: float = BEGAN, choice: int = 0) -> Said:
    return live.FirstToken(request=request, at=at, attempt=0, choice=choice, ttft_ms=ttft_ms)


def decoded(request: str, tokens: int, rate: float, *, at: float, choice: int = 0) -> Said:
    return live.Decode(
        request=request, at=at, attempt=0, choice=choice, tokens=tokens, tokens_per_s=rate
    )


def left(request: str, reason: str, tokens: int = 0) -> live.AttemptEnded:
    return live.AttemptEnded(
        request=request,
        at=BEGAN,
        attempt=0,
        choice=0,
        reason=reason,
        message=None,
        tokens=tokens,
    )


def ended(request: str, status: int = 200, reason: str = "stop") -> live.Ended:
    return live.Ended(
        request=request,
        at=BEGAN,
        status=status,
        reason=reason,
        tokens=3,
        cached_tokens=None,
        attempts=1,
        ttft_ms=1.0,
        itl_p50_ms=None,
        itl_max_ms=None,
        total_ms=2.0,
    )


def slow(said: live.Worker, text: str = "step 66 ms, others 22 ms") -> live.Worker:
    """The same, judged to be three times as slow as the others."""
    return replace(said, verdict=live.Verdict(kind="slow", times=3.0, text=text), last_step_ms=66.0)


class FakeFeed:
    """Says what it is told to."""

    def __init__(self, name: str = "gw:8001") -> None:
        self.name = name
        self._said: asyncio.Queue[Said] = asyncio.Queue()

    def say(self, *said: Said) -> None:
        for one in said:
            self._said.put_nowait(one)

    async def follow(self) -> AsyncGenerator[Said, None]:
        while True:
            said = await self._said.get()
            yield said
            self._said.task_done()

    async def heard(self) -> None:
        """Wait until all that was said has been heard."""
        await self._said.join()


@dataclass(slots=True)
class FakeOrders:
    """Writes orders down."""

    given: list[tuple[str, ...]] = field(default_factory=list)
    answer: Sequence[str] = ("Prefill ", "is [b]first[/b].")
    refuse: str = ""  #: every order, in these words

    async def drain(self, address: str) -> str:
        self._take("drain", address)
        return f"{address} is drained"

    async def set_role(self, address: str, role: str) -> str:
        self._take("role", address, role)
        return f"{address} does {role} now"

    async def ask(self, prompt: str) -> AsyncGenerator[str, None]:
        self._take("ask", prompt)
        for piece in self.answer:
            yield piece

    def _take(self, *order: str) -> None:
        self.given.append(order)
        if self.refuse:
            raise OrderFailed(self.refuse)
