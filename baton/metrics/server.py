"""``/metrics`` of a process that has no HTTP port for anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server


@contextmanager
def metrics_server(host: str, port: int | None, registry: CollectorRegistry) -> Iterator[str]:
    """Answer scrapes of ``registry`` within the body, on threads of prometheus_client's own; its
    address, host:port. Port 0 picks a free one; None: no server, and no address.

    Raises OSError naming host and port when they cannot be listened on.
    """
    if port is None:
        yield ""
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"--metrics-port: cannot listen on {host}:{port}: {reason}") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
