"""A gateway's live feed, followed through its restarts. ``docs/live.md`` says what is in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import httpx
from httpx_sse import EventSource, SSEError, aconnect_sse

from baton import live
from baton.backoff import Backoff

#: Seconds to be connected; and to hear something, where every second something is said.
_CONNECT, _SILENCE = 5.0, 10.0
#: Seconds between attempts to connect: the first, the longest.
_FIRST, _LONGEST = 0.25, 5.0
_SHOWN = 200  #: characters of what a gateway answered instead


@dataclass(frozen=True, slots=True)
class Down:
    """The gateway cannot be heard; it is tried again."""

    why: str


Said: TypeAlias = live.Event | Down


class Feed(Protocol):
    """What a gateway says."""

    @property
    def name(self) -> str:
        """Of the gateway, for people."""

    def follow(self) -> AsyncGenerator[Said, None]:
        """For ever. Each connection begins with a snapshot, its loss is ``Down``."""


class LiveFeed:
    """GET /live at a gateway."""

    def __init__(self, url: str, http: httpx.AsyncClient, pauses: Backoff | None = None) -> None:
        """``url``: of the admin port, or the public one where that tells as well."""
        self._url = f"{url.rstrip('/')}/live"
        self._http = http
        self._pauses = pauses or Backoff(_FIRST, _LONGEST)

    @property
    def name(self) -> str:
        return httpx.URL(self._url).netloc.decode()

    async def follow(self) -> AsyncGenerator[Said, None]:
        """See ``Feed``. A reader that was too slow is connected anew, too: it wants a snapshot."""
        while True:
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, live.Lost):
                            break
                    else:
                        yield Down("the gateway ended the feed")
            except (httpx.HTTPError, SSEError, ValueError) as error:
                yield Down(str(error) or type(error).__name__)
            await asyncio.sleep(self._pauses.pause())

    async def _connection(self) -> AsyncGenerator[live.Event, None]:
        """Raises httpx.HTTPError, SSEError; ValueError for what is no feed."""
        timeout = httpx.Timeout(_CONNECT, read=_SILENCE)
        async with aconnect_sse(self._http, "GET", self._url, timeout=timeout) as source:
            if source.response.status_code != 200:
                raise ValueError(await _refusal(source))
            async for said in source.aiter_sse():
                event = live.parse(said.event, said.data)
                if isinstance(event, live.Snapshot):
                    self._pauses.reset()
                if event is not None:
                    yield event


async def _refusal(source: EventSource) -> str:
    response = source.response
    text = (await response.aread()).decode(errors="replace")
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = text[:_SHOWN]
    hint = " (is it a gateway with --live off?)" if response.status_code == 404 else ""
    return f"HTTP {response.status_code}: {said}{hint}"
