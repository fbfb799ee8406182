"""What workers and gateways are told from the terminal view."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import grpc

from baton import wire
from baton.client import AsyncClient
from baton.errors import BatonError
from baton.identity import ROLES
from baton.tls.files import BadCertificate
from baton.tls.links import Links
from baton.tls.names import Party
from baton.v1 import worker_pb2, worker_pb2_grpc

#: Seconds that a worker gets to answer, beside what its sequences get.
_PATIENCE = 10.0


class OrderFailed(Exception):
    """In words for whoever gave it."""


class Orders(Protocol):
    """Each raises OrderFailed."""

    async def drain(self, address: str) -> str:
        """Send the worker there away; what came of it, when its sequences are gone."""

    async def set_role(self, address: str, role: str) -> str:
        """Have the worker there take a role of ``ROLES``; what came of it."""

    def ask(self, prompt: str) -> AsyncGenerator[str, None]:
        """The answer to one message, as it comes."""


class FleetOrders:
    """By gRPC to workers, as ``baton drain`` and ``baton role``; by HTTP to a gateway.

    Calls of workers are not the client's, which are made in threads: leaving the view ends them at
    once, and does not wait for a worker that drains.
    """

    def __init__(
        self,
        links: Links,
        client: AsyncClient,
        *,
        drain_grace: float,
        role_grace: float,
    ) -> None:
        """``client``: of the gateways' API. Graces: seconds that sequences get to finish."""
        self._links = links
        self._client = client
        self._drain_grace = drain_grace
        self._role_grace = role_grace

    async def drain(self, address: str) -> str:
        request = worker_pb2.DrainRequest(grace_ms=round(1000 * self._drain_grace))
        async with self._worker(address) as stub:
            reply = await stub.Drain(request, timeout=self._drain_grace + _PATIENCE)
        return f"{address} is drained; sequences handed back: {reply.handed_back}"

    async def set_role(self, address: str, role: str) -> str:
        request = worker_pb2.SetRolesRequest(
            roles=wire.roles_to_wire(ROLES[role]), grace_ms=round(1000 * self._role_grace)
        )
        async with self._worker(address) as stub:
            reply = await stub.SetRoles(request, timeout=self._role_grace + _PATIENCE)
        return (
            f"{address} does {role} now; sequences handed back: {reply.handed_back}, prompts that "
            f"it still finishes: {reply.finishing}"
        )

    @asynccontextmanager
    async def _worker(self, address: str) -> AsyncIterator[worker_pb2_grpc.WorkerServiceAsyncStub]:
        """Raises OrderFailed for whatever goes wrong there."""
        try:
            async with self._links.connect(address, Party.WORKER, shared=False) as channel:
                yield worker_pb2_grpc.WorkerServiceStub(channel)
        except (grpc.aio.AioRpcError, BadCertificate, OSError) as error:
            raise _failed(address, error) from None

    async def ask(self, prompt: str) -> AsyncGenerator[str, None]:
        try:
            async with self._client.chat(prompt, stream=True) as answer:
                async for chunk in answer:
                    yield chunk.reasoning + chunk.text
        except BatonError as error:
            raise OrderFailed(f"{error.code}: {error.message}") from None


def _failed(address: str, error: Exception) -> OrderFailed:
    if isinstance(error, grpc.aio.AioRpcError):
        return OrderFailed(f"{address}: {error.code().name.lower()}: {error.details()}")
    return OrderFailed(str(error))
