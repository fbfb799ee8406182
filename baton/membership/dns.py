"""Membership by name: every address of it is a worker, as of a headless service in Kubernetes.

Names are resolved by the system's own resolver (getaddrinfo, on a thread), which honours its hosts
file, search domains and order, and needs no package. It tells no TTLs, so it is asked again at a
fixed interval.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from baton.membership import Entry
from baton.membership.source import join_address, split_address

log = structlog.get_logger(__name__)

#: The IP addresses of a host. Raises OSError.
Resolve = Callable[[str, int], Awaitable[frozenset[str]]]


async def resolve(host: str, port: int) -> frozenset[str]:
    """A and AAAA records. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return frozenset(str(address[0]) for *_, address in found)


class DnsMembership:
    """Every address of some names, with the port that stands beside the name."""

    def __init__(
        self, names: Sequence[str], interval: float, *, resolve: Resolve = resolve
    ) -> None:
        """``names``: host:port each. ``interval``: seconds between lookups."""
        self._names = [split_address(name) for name in names]
        self._interval = interval
        self._resolve = resolve
        self._answers: dict[tuple[str, int], frozenset[str]] = {}
        self._failing: set[tuple[str, int]] = set()

    async def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Never ends; see ``Membership.watch``. A lookup that fails keeps that name's last answer:
        whether who is there still answers is seen anyway."""
        last: frozenset[Entry] | None = None
        while True:
            await asyncio.gather(*(self._look_up(name) for name in self._names))
            entries = frozenset(
                Entry(join_address(ip, port))
                for (_, port), answer in self._answers.items()
                for ip in answer
            )
            if entries != last:
                last = entries
                yield entries
            await asyncio.sleep(self._interval)

    async def _look_up(self, name: tuple[str, int]) -> None:
        host, _ = name
        try:
            self._answers[name] = await self._resolve(*name)
        except OSError as error:
            if name not in self._failing:
                kept = len(self._answers.get(name, ()))
                log.warning("name not resolved", host=host, reason=str(error), kept=kept)
            self._failing.add(name)
        else:
            if name in self._failing:
                log.info("name resolved again", host=host)
            self._failing.discard(name)
