"""An answer as server-sent events, cut when its client leaves or does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError, ClientGone, InternalError
from gateway.disconnect import disconnected
from gateway.openai_api import Usage
from gateway.requests import ValidRequest
from gateway.stall import Stall
from gateway.transcript import Finish, Piece

log = structlog.get_logger(__name__)

#: Seconds between comments that keep a silent stream's connection open in proxies.
PING_INTERVAL = 15
_PING = b": ping\n\n"
#: Neither caches nor proxies (nginx) may hold events back.
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Chunks(Protocol):
    """How the events of one stream look, in the order in which they are asked for."""

    def piece(self, piece: Piece) -> bytes:
        """The next one; empty when there is nothing of it to show."""
        ...

    def finish(self, index: int, finish: Finish) -> bytes:
        """A choice has ended."""
        ...

    def last(self, usage: Usage, extra: Mapping[str, object]) -> bytes:
        """All have. ``extra`` is to be told beside usage."""
        ...

    def error(self, error: BatonError) -> bytes:
        """It ends here: something went wrong."""
        ...


class AnswerStream(StreamingResponse):
    """Sends the pieces of an answer whose first one is here.

    sse-starlette's has four tasks for each response, which takes 0.15 ms; here one waits for the
    client's departure. ``on_end`` is called once, with the HTTP status that the whole came to;
    ``extra`` when all pieces are there, for what goes into the last chunk beside usage.
    """

    def __init__(
        self,
        requests: Sequence[ValidRequest],
        chunks: Chunks,
        first: Piece,
        rest: AsyncGenerator[Piece, None],
        write_timeout: float,
        on_end: Callable[[int], None],
        headers: Mapping[str, str],
        extra: Callable[[], Mapping[str, object]],
    ) -> None:
        super().__init__((), headers={**headers, **_HEADERS}, media_type="text/event-stream")
        self._requests = requests
        self._chunks = chunks
        self._first = first
        self._rest = rest
        self._write_timeout = write_timeout
        self._on_end = on_end
        self._extra = extra
        self.status = ClientGone.http_status  #: that the whole came to
        self._stall = Stall(write_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(disconnected(receive), name="client")
        gone.add_done_callback(lambda _: self._stall.cut())
        try:
            async with self._stall.watching(), aclosing(_Events(send, self._stall)) as events:
                await events.begin(self.status_code, self.raw_headers)
                await self._answer(events)
            if self._stall.passed:
                log.warning(
                    "client reads too slowly",
                    request_id=self._requests[0].request_id,
                    seconds=self._write_timeout,
                )
        finally:
            gone.cancel()
            await self._rest.aclose()
            self._on_end(self.status)

    async def _answer(self, events: _Events) -> None:
        chunks, piece = self._chunks, self._first
        usage = Usage(self._requests)
        choices = sum(request.n for request in self._requests)
        ended = 0
        try:
            while True:
                usage.count(piece)
                if event := chunks.piece(piece):
                    await events.say(event)
                if (ended := ended + (piece.finish is not None)) == choices:
                    break
                if piece.finish is not None:
                    await events.say(chunks.finish(piece.choice, piece.finish))
                piece = await anext(self._rest)
            # What runs is cancelled before the client is told that all is done.
            await self._rest.aclose()
            self.status = 200
            assert piece.finish is not None, "the last piece of all ends its choice"
            end = chunks.finish(piece.choice, piece.finish) + chunks.last(usage, self._extra())
        except BatonError as error:
            self.status = error.http_status
            end = chunks.error(error)
        except Exception:
            log.exception("answer failed", request_id=self._requests[0].request_id)
            self.status = InternalError.http_status
            await events.end(chunks.error(InternalError("the gateway failed; see its log")))
            raise
        await events.end(end)


class _Events:
    """Server-sent events, and comments while there are none for long."""

    def __init__(self, send: Send, stall: Stall) -> None:
        self._send = send
        self._stall = stall
        self._silent = False  #: since the timer last rang
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._ring_later()

    async def say(self, event: bytes) -> None:
        self._silent = False
        with self._stall:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self, event: bytes) -> None:
        """Say the last one."""
        await self.aclose()
        with self._stall:
            await self._send({"type": "http.response.body", "body": event})

    async def aclose(self) -> None:
        """No more comments."""
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
            await asyncio.wait((self._comment,))

    def _ring_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PING_INTERVAL, self._ring)

    def _ring(self) -> None:
        if self._silent and (self._comment is None or self._comment.done()):
            self._comment = asyncio.create_task(self.say(_PING), name="comment")
        self._silent = True
        self._ring_later()
