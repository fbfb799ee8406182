"""Which workers there are: one small interface, several sources.

A membership says where to look, no more: who answers there, what it does and whether it is well
is learnt from the worker itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class Membership(Protocol):
    """A changing set of addresses."""

    def watch(self) -> AsyncIterator[frozenset[str]]:
        """Yield all addresses (host:port) now, and again, in full, whenever the set changes.

        Ends when the set can no longer change; the last one stays valid. A source that loses
        its own server keeps to what it last yielded.
        """
        ...
