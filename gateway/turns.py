"""A crowd takes turns, so that the event loop comes by often.

A loop runs all that is ready before it looks at timers and sockets again. When thousands of
requests come, get a token or lose their worker at once, that takes seconds, in which no heartbeat
is sent: workers would take the gateway for dead, and end all that they do for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")


class Turns:
    """Lets so many through in each round of the loop, first come, first served."""

    def __init__(self, width: int) -> None:
        self._width = self._left = width
        self._line = deque[asyncio.Future[None]]()

    async def take(self) -> None:
        """Returns at once unless this round's turns are taken."""
        if self._left:
            self._use()
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        await turn

    def _use(self) -> None:
        if self._left == self._width:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._left -= 1

    def _next_round(self) -> None:
        self._left = self._width
        while self._left and self._line:
            turn = self._line.popleft()
            if not turn.done():  # else whoever waited has gone
                self._use()
                turn.set_result(None)


class OneByOne:
    """Middleware: requests take turns to begin; those for ``paths`` wait for nobody."""

    def __init__(self, app: ASGIApp, turns: Turns, paths: Collection[str]) -> None:
        self._app = app
        self._turns = turns
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._paths:
            await self._turns.take()
        await self._app(scope, receive, send)


async def in_rounds(items: Iterable[T], width: int, do: Callable[[T], None]) -> None:
    """``do`` with each of ``items``, so many in each round of the loop."""
    for number, item in enumerate(items, 1):
        do(item)
        if number % width == 0:
            await asyncio.sleep(0)
