"""What one watcher has been told of a worker's prefix cache, and what is to be told next."""

from __future__ import annotations

from typing import Protocol

from baton.prefix_keys import pack_digests
from baton.v1 import worker_pb2
from model.cache.journal import Changes


class Tells(Protocol):
    """An engine, as far as it matters here."""

    def cache_changes(self, since: int | None) -> Changes | None:
        """See ``Engine.cache_changes``."""


class CacheWatch:
    """Of one status stream: the whole cache first, then changes; the whole again for one who has
    read so slowly that more changed than the pool has blocks."""

    def __init__(self, engine: Tells) -> None:
        self._engine = engine
        self._told: int | None = None

    def news(self) -> worker_pb2.CacheChanges | None:
        """To be sent; None when nothing has changed."""
        changes = self._engine.cache_changes(self._told)
        if changes is None:
            return None
        since, self._told = self._told or 0, changes.position
        return worker_pb2.CacheChanges(
            position=changes.position,
            since=since,
            whole=changes.whole,
            entered=pack_digests(changes.entered),
            left=pack_digests(changes.left),
        )
