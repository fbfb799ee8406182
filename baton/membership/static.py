"""Membership from a list of addresses in the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable


class StaticMembership:
    """The same addresses for as long as the process lives."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = frozenset(addresses)

    async def watch(self) -> AsyncIterator[frozenset[str]]:
        """Yields once; see ``Membership.watch``."""
        yield self._addresses
