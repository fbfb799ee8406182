"""What makes a worker a prefill worker: its services, registered on the worker's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baton.identity import Role
from baton.kv.grpc_transport import GrpcOutlet
from baton.kv.nixl.outlet import NixlOutlet
from baton.kv.relay_transport import RelayOutlet
from baton.kv.shm.outlet import ShmOutlet
from baton.kv.transport import Outlet, capabilities, started
from baton.v1 import prefill_pb2_grpc
from model.worker.process import Services
from model.worker.runtime import Profile, Runtime
from model.worker.server import LateHandlers
from prefill_worker.service import PrefillService


def prefill_role(kv_address: str = "") -> Services:
    """Serve Prefill, and the KV beside it: all that such a worker ever does.

    ``kv_address``: where readers find the KV (host:port), if not at the worker's own address.
    """

    @asynccontextmanager
    async def role(runtime: Runtime, services: LateHandlers) -> AsyncIterator[Profile]:
        outlets = _outlets(runtime, services, kv_address)
        async with started(outlets):
            service = PrefillService(runtime, outlets)
            services.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, service)
            yield Profile(
                roles=frozenset({Role.PREFILL}),
                transports={Role.PREFILL: capabilities(outlets)},
                served_name=runtime.settings.served_name,
            )

    return role


def _outlets(runtime: Runtime, services: LateHandlers, kv_address: str) -> list[Outlet]:
    """The transports that the settings name, best first."""
    grpc = GrpcOutlet(runtime.beat.patience, kv_address)
    known: dict[str, Outlet] = {
        "grpc": grpc,
        "nixl": NixlOutlet(
            runtime.identity.instance_id,
            runtime.store.region,
            withheld=runtime.settings.unencrypted_kv,
        ),
        "relay": RelayOutlet(grpc),
        "shm": ShmOutlet(
            runtime.identity.instance_id,
            total_bytes=runtime.settings.shm_bytes,
            block_bytes=runtime.runner.compatibility.block_bytes,
            pin=runtime.store.pin,
        ),
    }
    names = runtime.settings.kv_transports
    if not {"grpc", "relay"}.isdisjoint(names):
        services.add_generic_rpc_handlers([grpc.handler()])
    return [known[name] for name in names]
