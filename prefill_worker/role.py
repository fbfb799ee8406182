"""What makes a worker a prefill worker: its services, registered on the worker's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baton.kv.grpc_transport import GrpcOutlet
from baton.v1 import prefill_pb2_grpc, worker_pb2
from model.worker.process import Role
from model.worker.runtime import Profile, Runtime
from model.worker.server import LateHandlers
from prefill_worker.service import PrefillService


def prefill_role(kv_address: str = "") -> Role:
    """Serve Prefill, and the KV beside it.

    ``kv_address``: where readers find the KV (host:port), if not at the worker's own address.
    """

    @asynccontextmanager
    async def role(runtime: Runtime, services: LateHandlers) -> AsyncIterator[Profile]:
        outlet = GrpcOutlet(kv_address)
        services.add_generic_rpc_handlers([outlet.handler()])
        service = PrefillService(runtime, [outlet])
        services.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, service)
        yield Profile(
            roles=[worker_pb2.ROLE_PREFILL],
            served_name=runtime.settings.served_name,
            transports=[worker_pb2.TransportCapability(name=outlet.name, version=outlet.version)],
        )

    return role
