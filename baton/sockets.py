"""What gRPC does not offer: to close the connection of one peer."""

from __future__ import annotations

import os
import socket
import stat
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

_OPEN = Path("/dev/fd")  #: of Linux and macOS: what this process has open


def disconnect(peer: str) -> bool:
    """Shut down this process's TCP connection to ``peer``, named as ``ServicerContext.peer`` does:
    ``ipv4:10.0.0.1:4321`` or ``ipv6:%5B::1%5D:4321``.

    Its owner finds that the peer has closed it. Returns whether there was such a connection.
    """
    kind, _, where = unquote(peer).partition(":")
    host, _, port = where.rpartition(":")
    if kind not in {"ipv4", "ipv6"}:
        return False
    wanted = _address(host.strip("[]")), int(port)
    shut_down = [_shut_down(int(entry.name), wanted) for entry in _OPEN.iterdir()]
    return any(shut_down)


def _shut_down(descriptor: int, wanted: tuple[IPv4Address | IPv6Address, int]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family not in {socket.AF_INET, socket.AF_INET6}:
                return False
            host, port = connection.getpeername()[:2]
            if (_address(host), port) != wanted:
                return False
            connection.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:  # closed meanwhile, or not connected
        return False


def _address(host: str) -> IPv4Address | IPv6Address:
    """Without its zone; an IPv4 address that came over an IPv6 socket as what it is."""
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
