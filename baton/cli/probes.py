"""How ``baton up`` and ``baton health`` ask a process whether it is ready."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.cli.display import Phase
from baton.tls.links import Links
from baton.tls.names import Party

_PATIENCE = 2.0


async def worker(links: Links, address: str) -> Phase:
    """A worker that listens but does not serve yet is loading weights (standard gRPC health)."""
    async with links.connect(address, Party.WORKER, shared=False) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE)
        except grpc.aio.AioRpcError:
            return Phase.STARTING
    serving = health_pb2.HealthCheckResponse.SERVING
    return Phase.READY if reply.status == serving else Phase.LOADING


async def gateway(url: str, *, alive: bool = False) -> Phase:
    """The gateway is ready when it says so at /ready: its workers are, too. With ``alive`` it is
    enough that it says so at /health."""
    path = "health" if alive else "ready"
    return Phase.READY if await asyncio.to_thread(_answers, f"{url}/{path}") else Phase.STARTING


def _answers(url: str) -> bool:
    # No proxy of the environment stands between us and our own child.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_PATIENCE) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
