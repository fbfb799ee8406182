"""HTTP servers that live in one loop with others, on sockets opened beforehand."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from baton.http_limits import HeadLimits
from gateway.http_protocol import HttpConfig

#: Seconds that streams get to end by themselves after the first signal; a second one ends them.
SHUTDOWN_GRACE = 5


class HttpServer(uvicorn.Server):
    """One of several in a process, which sees to the signals itself."""

    def __init__(self, app: Starlette, head: HeadLimits) -> None:
        super().__init__(HttpConfig(app, head, SHUTDOWN_GRACE))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Let streams end for a while; asked again, do not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True


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
