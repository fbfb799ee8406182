"""The relay put together: its watch on the workers, its gRPC server, its admin application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.applications import Starlette

from baton import tasks
from baton.identity import Identity, new_instance_id
from baton.metrics.process import process_registry
from baton.settings import RelaySettings
from baton.tls.links import Links
from gateway import sources
from gateway.hosts import known_hosts
from gateway.registry import Registry
from gateway.relay.admin import Metrics, admin_app
from gateway.relay.forwarding import WINDOW, handlers
from gateway.relay.service import Relay

_LOOK = 0.05  # seconds between looks at whether calls are still under way


@dataclass(frozen=True, slots=True)
class Service:
    """A running relay without its HTTP server."""

    address: str
    admin: Starlette
    registry: Registry
    relay: Relay
    metrics: Metrics

    async def drain(self, grace: float) -> None:
        """Take no new calls; return when none is left, or after ``grace`` seconds."""
        self.relay.leaving = True
        for _ in range(round(grace / _LOOK)):
            if not self.relay.calls:
                return
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def running(settings: RelaySettings) -> AsyncIterator[Service]:
    """Watch the workers and forward between them inside the block; end every call after it.

    Raises OSError when the address is taken, MembershipUnavailable, BadCertificate.
    """
    identity = Identity(new_instance_id(), compatibility=None)
    links = Links.of(settings)
    membership = sources.membership(settings, identity, links)
    registry = Registry(
        membership, identity, settings.beat, links, stall_timeout=settings.stall_timeout
    )
    metrics = Metrics(process_registry("relay", links))
    relay = Relay(
        registry,
        metrics,
        links,
        patience=settings.beat.patience,
        max_calls=settings.max_calls,
        max_reads=settings.max_reads,
    )
    server = links.server(window=WINDOW)
    server.add_generic_rpc_handlers(handlers(relay.prefill, relay.read))
    answering = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(answering, server)
    address = f"{settings.host}:{links.bind(server, settings.host, settings.port)}"
    # A relay that no longer follows its workers serves nobody: a defect there ends the block.
    async with tasks.group() as beside:
        following = beside.create_task(registry.run(), name="registry")
        await answering.set("", health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        try:
            hosts = known_hosts(settings.admin_host, settings.allowed_hosts)
            admin = admin_app(identity, registry, metrics, links, hosts)
            yield Service(address, admin, registry, relay, metrics)
        finally:
            await answering.enter_graceful_shutdown()
            await server.stop(0)
            await relay.close()
            following.cancel()
