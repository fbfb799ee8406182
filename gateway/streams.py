"""An answer as server-sent events, cut when its client leaves or does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

import structlog
from sse_starlette.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from baton import tasks
from baton.errors import BatonError, ClientGone, InternalError
from gateway.disconnect import disconnected
from gateway.requests import ValidRequest
from gateway.stall import Stall
from gateway.transcript import Finish, Piece

log = structlog.get_logger(__name__)

#: Seconds between comments that keep a silent stream's connection open in proxies.
PING_INTERVAL = 15


class Chunks(Protocol):
    """How the events of one stream look, in the order in which they are asked for. They count its
    usage, too."""

    def piece(self, piece: Piece) -> bytes:
        """The next one; empty when there is nothing of it to show."""
        ...

    def finish(self, index: int, finish: Finish) -> bytes:
        """A choice has ended."""
        ...

    def last(self, extra: Mapping[str, object]) -> bytes:
        """All have. ``extra`` is to be told beside usage."""
        ...

    def error(self, error: BatonError) -> bytes:
        """It ends here: something went wrong."""
        ...


class AnswerStream(EventSourceResponse):
    """Sends the pieces of an answer whose first one is here.

    sse-starlette watches for the client's departure whatever the ASGI version says. ``on_end`` is
    called once, with the HTTP status that the whole came to; ``extra`` when all pieces are there,
    for what goes into the last chunk beside usage.
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
        self._requests = requests
        self._chunks = chunks
        self._rest = rest
        self._on_end = on_end
        self._extra = extra
        self.status = ClientGone.http_status  #: that the whole came to
        self._stall = Stall(write_timeout)
        super().__init__(
            self._events(first),
            headers=headers,
            sep="\n",
            ping=PING_INTERVAL,
            send_timeout=write_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same tasks as sse-starlette's own, but for its watch for the process's end, which is
        ``HttpServer``'s here. A group of anyio's takes a fifth of the time of a short answer."""
        try:
            async with tasks.group() as parts:
                sending = parts.create_task(self._send(send), name="answer")
                pinging = parts.create_task(self._ping(send), name="ping")
                watching = parts.create_task(disconnected(receive), name="client")
                watching.add_done_callback(lambda _: sending.cancel())
                sending.add_done_callback(lambda _: (pinging.cancel(), watching.cancel()))
        finally:
            await self._rest.aclose()
            self._on_end(self.status)

    async def _send(self, send: Send) -> None:
        """In a task of its own: each token wakes all that await it, from the server down."""
        sending = asyncio.current_task()
        assert sending is not None, "a coroutine runs in a task"

        def too_slow() -> None:
            log.warning(
                "client reads too slowly",
                request_id=self._requests[0].request_id,
                seconds=self.send_timeout,
            )
            sending.cancel()

        with self._stall.watching(too_slow):
            await self._stream_response(send)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """sse-starlette's has a timer for every event, which takes as long as making the event."""
        with self._stall:
            await send(message)

    async def _events(self, first: Piece) -> AsyncGenerator[bytes, None]:
        chunks = self._chunks
        choices = sum(request.n for request in self._requests)
        piece, ended = first, 0
        try:
            while (ended := ended + (piece.finish is not None)) < choices:
                event = chunks.piece(piece)
                if piece.finish is not None:
                    event += chunks.finish(piece.choice, piece.finish)
                if event:
                    yield event
                piece = await anext(self._rest)
            # What runs is cancelled before the client is told that all is done.
            await self._rest.aclose()
            self.status = 200
            assert piece.finish is not None, "the last piece of all ends its choice"
            yield (
                chunks.piece(piece)
                + chunks.finish(piece.choice, piece.finish)
                + chunks.last(self._extra())
            )
        except BatonError as error:
            self.status = error.http_status
            yield chunks.error(error)
        except Exception:
            log.exception("answer failed", request_id=self._requests[0].request_id)
            self.status = InternalError.http_status
            yield chunks.error(InternalError("the gateway failed; see its log"))
            raise
