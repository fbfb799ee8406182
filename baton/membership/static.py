"""Membership from a list of addresses in the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from baton.membership import Entry


class StaticMembership:
    """The same addresses for as long as the process lives."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._entries = frozenset(Entry(address) for address in addresses)

    async def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Yields once; see ``Membership.watch``."""
        yield self._entries
