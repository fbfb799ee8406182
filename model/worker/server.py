"""A worker's gRPC server: it answers health from the first moment, the rest once it is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton.tls.links import PLAIN, Links

T = TypeVar("T")
Handler: TypeAlias = "grpc.GenericRpcHandler[Any, Any]"
_STATUS = health_pb2.HealthCheckResponse


class LateHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """Handlers of services that are registered after the server has started.

    Until then their calls are answered UNIMPLEMENTED, and health says NOT_SERVING.
    """

    def __init__(self) -> None:
        self._handlers: list[Handler] = []

    def add(self, register: Callable[[T, Any], None], service: T) -> None:
        """Serve ``service``; ``register`` is its generated ``add_..._to_server`` function."""
        register(service, self)

    def add_generic_rpc_handlers(self, handlers: Sequence[Handler]) -> None:
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The generic ones, which the generated code adds as well, do."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        for handler in self._handlers:
            method = handler.service(details)
            if method is not None:
                return method
        return None


class Server:
    """Listens as soon as it is made; ``open`` lets it serve."""

    def __init__(self, host: str, port: int, links: Links = PLAIN) -> None:
        """Raises OSError when the address is taken."""
        self.links = links
        self.services = LateHandlers()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = links.server()
        self._server.add_generic_rpc_handlers((self.services,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = f"{host}:{links.bind(self._server, host, port)}"

    async def start(self) -> None:
        """Answer health with NOT_SERVING."""
        await self._health.set("", _STATUS.NOT_SERVING)
        await self._server.start()

    async def serving(self, yes: bool) -> None:
        """What health answers from now on."""
        await self._health.set("", _STATUS.SERVING if yes else _STATUS.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Take no more calls; end those that last longer than ``grace`` seconds."""
        await self._server.stop(grace)
