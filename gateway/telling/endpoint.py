"""GET /live: the feed as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from gateway.streams import PING_INTERVAL
from gateway.telling.broadcast import Broadcast


class LiveEndpoint:
    """Every connection hears the same; one that takes nothing for ``write_timeout`` seconds is
    ended."""

    def __init__(self, broadcast: Broadcast, write_timeout: float) -> None:
        self._broadcast = broadcast
        self._write_timeout = write_timeout

    async def follow(self, _: Request) -> Response:
        """Raises RateLimited when too many follow already."""
        self._broadcast.require_room()
        return EventSourceResponse(
            self._events(),
            headers={"Cache-Control": "no-store"},
            sep="\n",
            ping=PING_INTERVAL,
            send_timeout=self._write_timeout,
        )

    async def _events(self) -> AsyncIterator[bytes]:
        number = 0
        async with aclosing(self._broadcast.listen()) as waiting:
            async for events in waiting:
                text = ""
                for name, data in events:
                    number += 1
                    text += f"id: {number}\nevent: {name}\ndata: {data}\n\n"
                yield text.encode()
