"""Middleware: by what name a request may ask for us, where a browser could be tricked into asking.

A page of a stranger may have its own name lead to 127.0.0.1 (DNS rebinding), and its browser then
takes our answers for the page's own. What gives it away is the name in the Host header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from baton.errors import BatonError, HostNotKnown
from gateway.refusal import refusal

Refused = Callable[[BatonError], None]


class KnownHost:
    """Lets in who asks by an address, by a name that nobody can register (without a dot, or under
    localhost), or by one of ``names``."""

    def __init__(self, app: ASGIApp, names: Sequence[str], refused: Refused) -> None:
        """``refused`` is told of each that is not let in."""
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for host in Headers(scope=scope).getlist("host"):
                if not self._knows(_name(host)):
                    error = HostNotKnown(f"host {host!r} is not known here (--allowed-hosts)")
                    self._refused(error)
                    await refusal(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _knows(self, name: str) -> bool:
        return (
            "." not in name
            or name in self._names
            or name.endswith(".localhost")
            or _is_address(name)
        )


def known_hosts(
    listening: str, names: Sequence[str], refused: Refused = lambda error: None
) -> list[Middleware]:
    """For what listens on that address: without ``names`` only a loopback one is looked after."""
    if "*" in names or not (names or _is_loopback(listening)):
        return []
    return [Middleware(KnownHost, names=names, refused=refused)]


def _name(host: str) -> str:
    """Without the port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


@lru_cache(maxsize=64)  # asked of every request
def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
