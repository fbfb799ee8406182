"""Middleware: a request's body may be only so long, and take only so long to arrive; and all bodies
together may take only so much memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.errors import BodiesFull, BodyTimeout, BodyTooLarge
from baton.http_limits import BodyLimits


class Body:
    """One as it comes, counted among all until it was read or its request has ended."""

    def __init__(self, bodies: Bodies) -> None:
        self.size = 0
        self._bodies = bodies

    def grow(self, size: int) -> None:
        """Raises BodyTooLarge, BodiesFull."""
        self.size += size
        self._bodies.held += size
        self._bodies.require(self.size)
        most, held = self._bodies.limits.bytes_of_all, self._bodies.held
        if size and held > most:
            raise BodiesFull(f"bodies of requests under way have {held} bytes of at most {most}")

    def forget(self) -> None:
        """Nothing is left of it but what it asked for."""
        self._bodies.held -= self.size
        self.size = 0


async def body_of(http: Request) -> bytes:
    """All of it. Starlette's own ``body`` would keep it for as long as the answer takes."""
    return b"".join([part async for part in http.stream()])


def forget_body(scope: Scope) -> None:
    """Of a request that was understood: see ``Body.forget``."""
    body = scope["state"]["body"]
    assert isinstance(body, Body)
    body.forget()


class Bodies:
    """All of a gateway."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self.held = 0  #: bytes

    @contextmanager
    def body(self) -> Iterator[Body]:
        """One more."""
        body = Body(self)
        try:
            yield body
        finally:
            body.forget()

    def require(self, size: int) -> None:
        """Raise BodyTooLarge for one of so many bytes, or more."""
        if size > self.limits.bytes:
            raise BodyTooLarge(
                f"the body has {size} bytes or more, but {self.limits.bytes} are allowed"
            )


class BodyLimit:
    """Raises BodyTooLarge, BodiesFull or BodyTimeout from the application's own ``receive``.

    A length that is announced is refused before the first byte is read.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._bodies.body() as body:
            scope["state"] = {**scope.get("state", {}), "body": body}
            await self._app(scope, self._limited(scope, receive, body), send)

    def _limited(self, scope: Scope, receive: Receive, body: Body) -> Receive:
        announced = Headers(scope=scope).get("content-length", "")
        seconds = self._bodies.limits.seconds
        due = asyncio.get_running_loop().time() + seconds
        complete = False

        async def limited() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            if announced.isdigit():
                self._bodies.require(int(announced))
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeout(
                    f"the body was not complete after {seconds:g} s: {body.size} bytes came"
                ) from None
            body.grow(len(message.get("body", b"")))
            complete = not message.get("more_body", False)
            return message

        return limited
