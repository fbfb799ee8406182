"""Requests as a client sends them, answers as it reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.cluster import MODEL

TIMEOUT = httpx.Timeout(120.0)


@dataclass(slots=True)
class Answer:
    """What came of a stream so far."""

    text: str = ""
    by_choice: dict[int, list[int]] = field(default_factory=dict)
    finish: str | None = None
    error: dict[str, Any] | None = None
    origin: dict[str, Any] = field(default_factory=dict)  #: what it takes to resume it elsewhere
    done: bool = False

    def add(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]
        self.origin = event.get("baton", self.origin)
        for choice in event.get("choices", []):
            self.text += choice.get("text", choice.get("delta", {}).get("content") or "")
            self.by_choice.setdefault(choice["index"], []).extend(choice.get("token_ids", []))
            self.finish = choice["finish_reason"] or self.finish

    @property
    def token_ids(self) -> list[int]:
        """Those of the first choice, then those of the second, and so on."""
        return [token_id for index in sorted(self.by_choice) for token_id in self.by_choice[index]]

    @property
    def ended(self) -> bool:
        """Properly: with a reason and the mark of the end, or with an error event."""
        return (self.done and self.finish is not None) or self.error is not None


def body(prompt: str | Sequence[int], max_tokens: int, **over: Any) -> dict[str, Any]:
    """A completion request whose tokens can be compared: ids returned, no early end."""
    return {
        "model": MODEL,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **over,
    }


async def stream(
    client: httpx.AsyncClient, request: dict[str, Any], path: str = "/v1/completions"
) -> AsyncIterator[Answer]:
    """The answer, yielded again after every event. A refusal is an answer with an error."""
    answer = Answer()
    async with client.stream("POST", path, json={**request, "stream": True}) as reply:
        if reply.status_code != 200:
            answer.error = json.loads(await reply.aread())["error"]
            yield answer
            return
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                answer.done = True
            else:
                answer.add(json.loads(line.removeprefix("data: ")))
            yield answer


async def whole(client: httpx.AsyncClient, request: dict[str, Any]) -> Answer:
    """The stream's end."""
    answer = Answer()
    async for current in stream(client, request):
        answer = current
    return answer


async def tokens(client: httpx.AsyncClient, request: dict[str, Any]) -> list[int]:
    """Token ids of an answer that must come to its end."""
    answer = await whole(client, request)
    assert answer.done and answer.error is None, answer
    return answer.token_ids


def connect(url: str) -> httpx.AsyncClient:
    """A client that never gives up a stream by itself before TIMEOUT."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits, trust_env=False)
