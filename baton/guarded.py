"""A gRPC handler with a check before it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[[Any, Context], Any]
#: Given the request (or requests) and the context; aborts the call, or returns.
Check = Callable[[Any, Context], Awaitable[None]]
Deserializer = Callable[[bytes], Any]


def guarded(handler: Handler, check: Check, deserializer: Deserializer | None = None) -> Handler:
    """``handler``, with ``check`` before it; with ``deserializer`` in place of its own."""
    makers = {
        "unary_unary": grpc.unary_unary_rpc_method_handler,
        "unary_stream": grpc.unary_stream_rpc_method_handler,
        "stream_unary": grpc.stream_unary_rpc_method_handler,
        "stream_stream": grpc.stream_stream_rpc_method_handler,
    }
    for kind, make in makers.items():
        behaviour: Behaviour | None = getattr(handler, kind)
        if behaviour is not None:
            made: Handler = make(
                _after(check, behaviour),
                deserializer or handler.request_deserializer,
                handler.response_serializer,
            )
            return made
    return handler


def _after(check: Check, behaviour: Behaviour) -> Behaviour:
    """Both forms of a handler that gRPC knows: a generator, and a coroutine that may write."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await check(request, context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return generate

    async def answer(request: Any, context: Context) -> Any:
        await check(request, context)
        return await behaviour(request, context)

    return answer
