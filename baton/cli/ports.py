"""Ports of this machine for the processes of ``baton up``."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator

#: Below the range from which Linux and macOS draw the ports of outgoing connections, so that no
#: connection takes a worker's port between our choosing it and the worker's listening on it.
_CANDIDATES = range(20_000, 32_000)


def available(host: str, port: int) -> bool:
    """True when a server could listen on host:port now. Raises OSError naming ``host`` if it is not
    ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise OSError(f"cannot listen on {host}: {error.strerror}") from error
    return True


def free(host: str) -> Iterator[int]:
    """Ports of ``host`` on which nobody listens, in random order, each once."""
    for port in random.sample(_CANDIDATES, len(_CANDIDATES)):
        if available(host, port):
            yield port
    raise OSError(f"no free port between {_CANDIDATES.start} and {_CANDIDATES.stop} on {host}")
