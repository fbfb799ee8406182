"""``python -m gateway``: settings, then two HTTP servers in one loop until a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop
from starlette.applications import Starlette

from baton import log as logs
from baton import tasks
from baton.parent import exit_with_parent
from baton.settings import GatewaySettings, load
from gateway.service import running
from gateway.tokenizer import CheckpointError, ModelTokenizer
from gateway.tokenizer import load as load_tokenizer

log = structlog.get_logger(__name__)

#: Seconds that streams get to end by themselves after the first signal; a second one ends them.
SHUTDOWN_GRACE = 5


class HttpServer(uvicorn.Server):
    """One of several in a process, which sees to the signals itself."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_GRACE,
            )
        )

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


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    settings: GatewaySettings,
    tokenizer: ModelTokenizer,
    public: socket.socket,
    admin: socket.socket,
) -> None:
    """Serve on two listening sockets until SIGTERM or SIGINT."""
    async with running(settings, tokenizer) as service:
        servers = {HttpServer(service.public): public, HttpServer(service.admin): admin}

        def stop() -> None:
            for server in servers:
                server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        log.info("ready", url=_url(public), admin=_url(admin), model=settings.served_name)
        async with tasks.group() as group:
            for server, listening in servers.items():
                group.create_task(server.serve([listening]))
    log.info("stopped")


def main() -> int:
    settings = load(GatewaySettings, sys.argv[1:], "gateway")
    logs.configure(settings.log_level, settings.log_format, "gateway")
    if settings.exit_with_parent:
        exit_with_parent()
    try:
        tokenizer = load_tokenizer(settings.model)
        public = listen(settings.host, settings.port)
        admin = listen(settings.host, settings.admin_port)
    except (CheckpointError, OSError) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    uvloop.run(serve(settings, tokenizer, public, admin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
