"""Middleware: a request's body may be only so long, and take only so long to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.errors import BodyTimeout, BodyTooLarge


class BodyLimit:
    """Raises BodyTooLarge or BodyTimeout from the application's own ``receive``.

    A length that is announced is refused before the first byte is read.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self._limited(scope, receive)
        await self._app(scope, receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        announced = Headers(scope=scope).get("content-length", "")
        due = asyncio.get_running_loop().time() + self._timeout
        received = 0
        complete = False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large(int(announced))
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeout(
                    f"the body was not complete after {self._timeout:g} s: {received} bytes came"
                ) from None
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large(received)
            complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self, size: int) -> BodyTooLarge:
        return BodyTooLarge(f"the body has {size} bytes or more, but {self._max_bytes} are allowed")
