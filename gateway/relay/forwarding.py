"""Bytes from one gRPC call into another. Knows the two methods, not their messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from baton.errors import PeerError
from baton.kv.connections import Connection
from baton.tasks import group

PREFILL_SERVICE, PREFILL = "baton.v1.PrefillService", "Prefill"
KV_SERVICE, READ = "baton.v1.KvService", "Read"

#: Bytes that a sender may be ahead of the relay on each stream.
WINDOW = 2 * 2**20

_AS_BYTES = (None, None)  # neither serialiser nor deserialiser

Context = grpc.aio.ServicerContext[bytes, bytes]
Write = Callable[[bytes], Awaitable[None]]


class Ended(PeerError):
    """A forwarded call is over, with a status that is not OK."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = status


async def forward_prefill(
    connection: Connection, first: bytes, rest: AsyncIterator[bytes], write: Write
) -> None:
    """Prefill at the other end of ``connection``: ``first`` and ``rest`` up, what comes down to
    ``write``. Raises Ended, and whatever ``write`` raises; the call is over then."""
    method = connection.channel.stream_stream(f"/{PREFILL_SERVICE}/{PREFILL}", *_AS_BYTES)
    call = method(None)
    try:
        async with group() as tasks:
            sending = tasks.create_task(_send(call, first, rest), name="relay prefill")
            async for event in call:
                await write(event)
            sending.cancel()
    except grpc.aio.AioRpcError as error:
        raise _ended(connection, error) from error
    finally:
        call.cancel()


async def _send(
    call: grpc.aio.StreamStreamCall[bytes, bytes], first: bytes, rest: AsyncIterator[bytes]
) -> None:
    # Once the call is over, how it ended is said by its other direction.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(first)
        async for request in rest:
            await call.write(request)
        await call.done_writing()


async def forward_read(connection: Connection, request: bytes, write: Write) -> None:
    """Read at the other end of ``connection``, every frame to ``write``. Raises as
    ``forward_prefill``."""
    frames = connection.channel.unary_stream(f"/{KV_SERVICE}/{READ}", *_AS_BYTES)(request)
    try:
        async for frame in frames:
            await write(frame)
    except grpc.aio.AioRpcError as error:
        raise _ended(connection, error) from error
    finally:
        frames.cancel()


def _ended(connection: Connection, error: grpc.aio.AioRpcError) -> Ended:
    status = error.code()
    connection.ended(status)
    if status is grpc.StatusCode.UNAVAILABLE:
        status = grpc.StatusCode.ABORTED  # the relay itself is well
    return Ended(status, error.details() or "")


def handlers(
    prefill: Callable[[AsyncIterator[bytes], Context], Awaitable[None]],
    read: Callable[[bytes, Context], Awaitable[None]],
) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Serve both methods with messages as bytes: no serialiser."""
    return [
        grpc.method_handlers_generic_handler(service, {method: handler})
        for service, method, handler in (
            (PREFILL_SERVICE, PREFILL, grpc.stream_stream_rpc_method_handler(prefill)),
            (KV_SERVICE, READ, grpc.unary_stream_rpc_method_handler(read)),
        )
    ]
