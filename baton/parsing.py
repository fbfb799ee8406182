"""Requests that are no messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from baton.guarded import Context, Handler, guarded


@dataclass(frozen=True, slots=True)
class _Unread:
    """In place of a request that could not be parsed."""

    why: str


class Parsing(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Answers a single request that does not parse with INVALID_ARGUMENT, and why.

    gRPC parses before it asks anybody, says UNKNOWN, and logs a traceback.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if not handler or handler.request_streaming or handler.request_deserializer is None:
            return handler
        method, parse = str(handler_call_details.method), handler.request_deserializer

        def read(message: bytes) -> Any:
            try:
                return parse(message)
            except DecodeError as error:
                return _Unread(f"no request of {method}: {error}")

        return guarded(handler, _check, read)


async def _check(request: Any, context: Context) -> None:
    if isinstance(request, _Unread):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.why)
