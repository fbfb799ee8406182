"""``python -m gateway.relay``: one relay, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import structlog
import uvloop

from baton import log as logs
from baton import tasks
from baton.configure import load
from baton.kv.heap import keep_freed_memory
from baton.membership import MembershipUnavailable
from baton.parent import exit_with_parent
from baton.settings import RelaySettings
from baton.tls.files import BadCertificate
from gateway.http_server import SHUTDOWN_GRACE, HttpServer, listen, url
from gateway.relay.server import running

log = structlog.get_logger(__name__)


async def serve(settings: RelaySettings, admin: socket.socket) -> None:
    """Forward until SIGTERM or SIGINT; then calls under way get a while to end by themselves."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with running(settings) as service, tasks.group() as group:
        http = HttpServer(service.admin, settings.head_limits)
        group.create_task(http.serve([admin]))
        log.info("ready", address=service.address, admin=url(admin))
        await stopping.wait()
        await service.drain(SHUTDOWN_GRACE)
        http.stop()
    log.info("stopped")


def main() -> int:
    settings = load(RelaySettings, sys.argv[1:], "relay")
    logs.configure(settings.log_level, settings.log_format, "relay")
    keep_freed_memory()  # where there is no glibc, KV messages only cost more
    if settings.exit_with_parent:
        exit_with_parent()
    try:
        admin = listen(settings.admin_host, settings.admin_port)
        uvloop.run(serve(settings, admin))
    except (OSError, MembershipUnavailable, BadCertificate) as error:
        sys.stderr.write(f"relay: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
