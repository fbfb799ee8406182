"""Writing to the peer of a server stream, who may be slow, or gone."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import grpc

from baton.errors import ClientGone

M = TypeVar("M")


class Writer(Generic[M]):
    """One message at a time, in order, whoever is cancelled.

    gRPC cannot take back a write under way, and refuses a second one beside it. So a cancelled
    write goes on by itself, and the next one waits for it: an error can still be said after the
    task that was writing has been cancelled.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, M]) -> None:
        self._context = context
        self._pending: asyncio.Task[None] | None = None

    async def __call__(self, message: M) -> None:
        """Returns when gRPC has taken the message. Raises ClientGone once the call is over."""
        await self.settled()
        self._pending = asyncio.create_task(self._write(message), name="grpc write")
        self._pending.add_done_callback(_retrieve)
        await asyncio.shield(self._pending)

    async def settled(self) -> None:
        """Returns when no write is under way; only then may the call be aborted."""
        if self._pending is not None:
            await asyncio.wait((self._pending,))

    async def _write(self, message: M) -> None:
        try:
            await self._context.write(message)
        except (grpc.aio.InternalError, grpc.aio.UsageError) as error:
            raise ClientGone("the peer has ended the call") from error


def _retrieve(task: asyncio.Task[None]) -> None:
    """A failure that nobody waits for any more is no news: the call is over."""
    if not task.cancelled():
        task.exception()
