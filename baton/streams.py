"""Writing to the peer of a server stream, who may be slow, or gone, or not read at all."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import grpc
import structlog

from baton.errors import ClientGone
from baton.sockets import disconnect

log = structlog.get_logger(__name__)
M = TypeVar("M")


class Writer(Generic[M]):
    """One message at a time, in order, whoever is cancelled; and the end of the call.

    gRPC cannot take back a write under way, and refuses a second one beside it. So a cancelled
    write goes on by itself, and the next one waits for it: an error can still be said after the
    task that was writing has been cancelled.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, M], patience: float) -> None:
        """``patience``: seconds that a peer gets to take the last that is written."""
        self._context = context
        self._patience = patience
        self._pending: asyncio.Task[None] | None = None

    async def __call__(self, message: M) -> None:
        """Returns when gRPC has taken the message. Raises ClientGone once the call is over."""
        await self._settled()
        self._pending = asyncio.create_task(self._write(message), name="grpc write")
        self._pending.add_done_callback(_retrieve)
        await asyncio.shield(self._pending)

    async def abort(self, status: grpc.StatusCode, details: str, last: M | None = None) -> None:
        """End the call with ``status``, after the message ``last``. Comes last in a handler.

        A server of grpc.aio (1.85) cannot end a call beside a write that the peer does not take:
        the status waits behind it, and cancelling the handler leaves call and message where they
        are until the peer reads or goes away. So one that takes nothing for ``patience`` loses
        its connection, and every call on it.
        """
        try:
            async with asyncio.timeout(self._patience):
                if last is not None:
                    await self(last)
                await self._settled()
        except ClientGone:
            return
        except TimeoutError:
            peer = self._context.peer()
            log.warning("peer does not read", peer=peer, disconnected=disconnect(peer))
            await self._settled()
        await self._context.abort(status, details)

    async def _settled(self) -> None:
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
