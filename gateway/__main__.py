"""``python -m gateway``: settings, then two HTTP servers in one loop until a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from dataclasses import replace

import structlog
import uvloop

from baton import log as logs
from baton import tasks
from baton.configure import load
from baton.membership import MembershipUnavailable
from baton.parent import exit_with_parent
from baton.settings import GatewaySettings
from baton.tls.files import BadCertificate
from baton.tracing import TracingUnavailable
from gateway import garbage
from gateway.descriptors import room_for
from gateway.http_server import HttpServer, listen, url
from gateway.keys import KeyFileError
from gateway.service import running
from gateway.tokenizer import CheckpointError, ModelTokenizer
from gateway.tokenizer import load as load_tokenizer

log = structlog.get_logger(__name__)


async def serve(
    settings: GatewaySettings,
    tokenizer: ModelTokenizer,
    public: socket.socket,
    admin: socket.socket,
) -> None:
    """Serve on two listening sockets until SIGTERM or SIGINT."""
    async with running(settings, tokenizer) as service:
        limits = settings.head_limits
        limits = replace(limits, connections=room_for(limits.connections))
        servers = {
            HttpServer(app, limits, service.metrics.refused_connection): listening
            for app, listening in ((service.public, public), (service.admin, admin))
        }

        def stop() -> None:
            service.broadcast.close()
            for server in servers:
                server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        log.info(
            "ready",
            url=url(public),
            admin=url(admin),
            rpc=service.rpc,
            model=settings.served_name,
        )
        async with garbage.seldom(), tasks.group() as group:
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
        admin = listen(settings.admin_host, settings.admin_port)
        uvloop.run(serve(settings, tokenizer, public, admin))
    except (
        CheckpointError,
        OSError,
        MembershipUnavailable,
        BadCertificate,
        KeyFileError,
        TracingUnavailable,
    ) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
