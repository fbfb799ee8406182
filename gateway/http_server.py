"""HTTP servers that live in one loop with others, on sockets opened beforehand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from baton.errors import BatonError
from baton.http_limits import HeadLimits
from gateway.http_protocol import HttpConfig
from gateway.turns import in_rounds

#: Seconds that streams get to end by themselves after the first signal; a second one ends them.
SHUTDOWN_GRACE = 5
#: Seconds that what served a connection gets to end after it was closed: there may be many.
_END_GRACE = 15
#: Connections that are closed in one round of the loop.
_ROUND = 256


class HttpServer(uvicorn.Server):
    """One of several in a process, which sees to the signals itself."""

    def __init__(
        self,
        app: Starlette,
        head: HeadLimits,
        refused: Callable[[BatonError], None] = lambda error: None,
    ) -> None:
        """``refused`` is told of each connection that is closed with an error."""
        self._closing: asyncio.Task[None] | None = None
        super().__init__(HttpConfig(app, head, SHUTDOWN_GRACE + _END_GRACE, refused))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Let streams end for a while; asked again, do not wait for them."""
        if self.should_exit:
            self._hang_up()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(SHUTDOWN_GRACE, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            if self._closing is not None:
                await self._closing

    def _hang_up(self) -> None:
        self._closing = asyncio.create_task(self._close_all(), name="hanging up")

    async def _close_all(self) -> None:
        """Close every connection: what serves it ends as if its client had left.

        uvicorn cancels instead, does not wait for what it cancelled, and writes a traceback for
        each: for 10,000 streams that took longer than anyone waits for a process to end."""
        connections = list(self.server_state.connections)
        await in_rounds(connections, _ROUND, lambda connection: connection.transport.abort())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks one. Raises OSError naming host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def url(listening: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
