"""An answer as server-sent events, cut when its client leaves or does not read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

import structlog
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError, ClientGone, InternalError
from gateway.openai_api import Chunks, Usage, error_event
from gateway.requests import ValidRequest
from gateway.transcript import Piece

log = structlog.get_logger(__name__)

#: Seconds between comments that keep a silent stream's connection open in proxies.
PING_INTERVAL = 15


class AnswerStream(EventSourceResponse):
    """Sends the pieces of an answer whose first one is here.

    sse-starlette watches for the client's departure whatever the ASGI version says, and bounds
    every send. ``on_end`` is called once, with the HTTP status that the whole came to; ``extra``
    when all pieces are there, for what goes into the last chunk beside usage.
    """

    def __init__(
        self,
        request: ValidRequest,
        first: Piece,
        rest: AsyncGenerator[Piece, None],
        write_timeout: float,
        on_end: Callable[[int], None],
        headers: Mapping[str, str],
        extra: Callable[[], Mapping[str, object]],
    ) -> None:
        self._request = request
        self._rest = rest
        self._on_end = on_end
        self._extra = extra
        self._status = ClientGone.http_status
        super().__init__(
            self._events(first),
            headers=headers,
            sep="\n",
            ping=PING_INTERVAL,
            send_timeout=write_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.warning(
                "client reads too slowly",
                request_id=self._request.request_id,
                seconds=self.send_timeout,
            )
        finally:
            await self._rest.aclose()
            self._on_end(self._status)

    async def _events(self, first: Piece) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(self._request)
        usage = Usage(self._request)
        piece, ended = first, 0
        try:
            yield chunks.first(first.workers) + chunks.piece(first)
            usage.count(first)
            while (ended := ended + (piece.finish is not None)) < self._request.n:
                if piece.finish is not None:
                    yield chunks.finish(piece.choice, piece.finish)
                piece = await anext(self._rest)
                usage.count(piece)
                if event := chunks.piece(piece):
                    yield event
            # What runs is cancelled before the client is told that all is done.
            await self._rest.aclose()
            self._status = 200
            assert piece.finish is not None, "the last piece of all ends its choice"
            yield chunks.finish(piece.choice, piece.finish) + chunks.last(usage, self._extra())
        except BatonError as error:
            self._status = error.http_status
            yield error_event(error)
        except Exception:
            log.exception("answer failed", request_id=self._request.request_id)
            self._status = InternalError.http_status
            yield error_event(InternalError("the gateway failed; see its log"))
            raise
