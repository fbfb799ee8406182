"""uvicorn's HTTP/1.1 with what it lacks: bounds on connections and heads, and no upgrades.

Its ``limit_concurrency`` refuses requests, and leaves their connections open.

httptools buffers a head of any length for any time. And it stops parsing at an offer to upgrade,
such as a client's ``Upgrade: h2c``, which would lose the body of a request that is to be answered
as HTTP/1.1 (RFC 9110, 7.8: a server may ignore the offer): it is parsed again without the offer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from baton.errors import (
    BatonError,
    HeadTimeout,
    HeadTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    TooManyConnections,
)
from baton.http_limits import HeadLimits
from gateway.refusal import refusal

#: Requests of a connection that wait for the one before to be answered; each takes some 2 KB.
_PIPELINED = 64

#: Header fields that make an offer to upgrade, and the one that names such fields.
_OFFER = frozenset({b"upgrade", b"http2-settings", b"connection"})


class HttpConfig(uvicorn.Config):
    """uvicorn's, for servers of this protocol. ``grace``: see uvicorn's graceful shutdown.
    ``refused`` is told of each connection that is closed with an error."""

    def __init__(
        self, app: ASGIApp, head: HeadLimits, grace: int, refused: Callable[[BatonError], None]
    ) -> None:
        super().__init__(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=grace,
        )
        self.head = head
        self.refused = refused


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, HttpConfig)
        self._limits = config.head
        self._refused = config.refused
        self._in_head = True
        self._head_bytes = 0  # of data that was all head, so far
        self._in_body = False
        self._content = False  # came with the data just parsed
        self._empty_bytes = 0  # of a body's framing, since its last content
        self._offered = False  # an upgrade, in the head just parsed
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            most = self._limits.connections
            self._refuse(TooManyConnections(f"{most} connections are open of at most {most}"))
        else:
            _bound_unread(transport, self._limits.unread)
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        began_before = self._in_head
        self._content = False
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            why = error.__context__  # what a callback raised
            known = why if isinstance(why, BatonError) else InvalidRequest("this is not HTTP/1.1")
            self._refuse(known)
            return
        if began_before and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.bytes:
                self._refuse(self._too_long(self._head_bytes))
        elif self._in_body and not self._content:
            # Chunks' extensions and trailers tell the application nothing, so it bounds none.
            self._empty_bytes += len(data)
            if self._empty_bytes > self._limits.bytes:
                self._refuse(HeadTooLarge("chunk extensions or trailers of the body are too long"))

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stopped:
                rest = rest[stopped.args[0] :]
                head = self._without_offer()
                self._offered = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)

    def _without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name not in _OFFER]
        connection = b",".join(value for name, value in self.headers if name == b"connection")
        if b"close" in [token.strip().lower() for token in connection.split(b",")]:
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self._limits.fields:
            raise HeadTooLarge(f"the header has more than {self._limits.fields} fields")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._in_body = False, True
        self._empty_bytes = 0
        if len(self.pipeline) >= _PIPELINED:
            raise InvalidRequest(f"{_PIPELINED} requests wait on this connection, as many as may")
        length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if length > self._limits.bytes:
            raise self._too_long(length)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise MethodNotAllowed("CONNECT: this is no proxy")
        else:
            self._offered = True

    def on_body(self, body: bytes) -> None:
        self._content, self._empty_bytes = True, 0
        if not self._offered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_timer()
        if not self._offered:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            # Nobody waits for the rest of that body, nor has a time for it, but us.
            self._stop_timer()
            self._head_timer = self.loop.call_later(self._limits.seconds, self.transport.close)

    def _await_head(self) -> None:
        self._stop_timer()
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self._limits.seconds, self._late)

    def _late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Whoever sends on meanwhile waits for that answer.
            self._head_timer = self.loop.call_later(self._limits.seconds, self._late)
        else:
            self._refuse(
                HeadTimeout(f"the request's head was not complete after {self._limits.seconds:g} s")
            )

    @property
    def _answering(self) -> bool:
        """Whether bytes of an answer have been sent, and not all."""
        cycle = self.cycle
        half = cycle is not None and cycle.response_started and not cycle.response_complete
        return half or bool(self.pipeline)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_long(self, length: int) -> HeadTooLarge:
        return HeadTooLarge(
            f"the request's head has {length} bytes or more, but {self._limits.bytes} are allowed"
        )

    def _refuse(self, error: BatonError) -> None:
        """Answer, unless an answer is under way that this would fall into, and hang up."""
        self._stop_timer()
        self._refused(error)
        if not self._answering:
            answer = refusal(error)
            fields = [*answer.raw_headers, (b"connection", b"close")]
            lines = [name + b": " + value + b"\r\n" for name, value in fields]
            head = STATUS_LINE[answer.status_code] + b"".join(lines) + b"\r\n"
            self.transport.write(head + bytes(answer.body))
        self.transport.close()


def _bound_unread(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel end a connection whose peer takes nothing of what was sent for so long, also
    while it is being closed: its window stays shut, or it is gone. Linux alone can."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    connection = transport.get_extra_info("socket")
    if option is not None and connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, round(1000 * seconds))
