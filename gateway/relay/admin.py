"""What operators see of a relay: its counts, and the workers that it watches."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from baton.identity import Identity, Role
from baton.tls.links import Links
from gateway.app import application
from gateway.registry import Registry
from gateway.status import describe


class Metrics:
    """The relay's instruments."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = Counter("baton_relay_calls", "Prefill calls forwarded.", registry=registry)
        self.refused = Counter(
            "baton_relay_refused", "Calls and KV streams refused.", registry=registry
        )
        self.kv_bytes = Counter("baton_relay_kv_bytes", "KV forwarded, bytes.", registry=registry)
        self.open_calls = Gauge(
            "baton_relay_open_calls", "Prefill calls under way.", registry=registry
        )
        self.open_reads = Gauge(
            "baton_relay_open_reads", "KV streams under way.", registry=registry
        )


def admin_app(
    identity: Identity,
    registry: Registry,
    metrics: Metrics,
    links: Links,
    hosts: Sequence[Middleware],
) -> Starlette:
    """/cluster, /health, /ready and /metrics."""

    async def cluster(_: Request) -> Response:
        """Every worker as this relay sees it."""
        return JSONResponse(
            {
                "relay": {
                    "instance_id": identity.instance_id,
                    "protocol": identity.protocol,
                    "tls": links.encrypted,
                    "refused": links.refused,
                },
                "workers": [describe(member) for member in registry.members],
            }
        )

    async def health(_: Request) -> Response:
        """Alive: the event loop answers."""
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        """Whether there are workers to forward between; 503 and which are missing if not."""
        there = {role for worker in registry.roster.workers for role in worker.report.roles}
        missing = [f"no live {role.value} worker" for role in Role if role not in there]
        if missing:
            return JSONResponse({"status": "not ready", "reasons": missing}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def counts(_: Request) -> Response:
        return Response(
            generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    return application(
        [
            Route("/cluster", cluster),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", counts),
        ],
        hosts,
    )
