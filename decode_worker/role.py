"""What makes a worker a decode worker: its service, and its connections to prefill workers.

It has the services of a prefill worker as well, for when it is told to be one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from baton.identity import ROLES, Role
from baton.kv.checksums import Policy, measure_rate
from baton.kv.connections import Connections
from baton.kv.grpc_transport import GrpcReader
from baton.kv.ledger import Ledger
from baton.kv.nixl.reader import NixlReader
from baton.kv.relay_transport import RelayReader
from baton.kv.shm.reader import ShmReader
from baton.kv.transport import Reader, capabilities, started
from baton.metrics.hand_offs import HandOffMetrics
from baton.settings import DecodeSettings
from baton.v1 import decode_pb2_grpc
from decode_worker.attempt import Attempts
from decode_worker.prefill_choice import Chooser
from decode_worker.prefill_client import PrefillClient
from decode_worker.routes import Routes
from decode_worker.service import DecodeService
from model.worker.process import Services
from model.worker.runtime import Profile, Runtime
from model.worker.server import LateHandlers
from prefill_worker.role import prefill_role

log = structlog.get_logger(__name__)


def decode_role(settings: DecodeSettings, kv_address: str = "") -> Services:
    """Serve sessions, as ``settings`` say, and Prefill; which of the two, its roles decide.

    ``kv_address``: see ``prefill_role``.
    """

    @asynccontextmanager
    async def role(runtime: Runtime, services: LateHandlers) -> AsyncIterator[Profile]:
        connections = Connections(settings.grpc_window_bytes, runtime.links)
        stripes = settings.kv_stripes
        known: dict[str, Reader] = {
            "grpc": GrpcReader(connections, stripes),
            "nixl": NixlReader(
                runtime.store.region,
                unchecked=settings.kv_checksums != "on",
                withheld=settings.unencrypted_kv,
            ),
            "relay": RelayReader(connections, settings.relay),
            "shm": ShmReader(pin=runtime.store.pin),
        }
        readers = [known[name] for name in settings.kv_transports]
        routes = Routes(settings.relay, settings.kv_transports)
        client = PrefillClient(runtime.identity, runtime.beat, connections, readers, routes)
        ledger = Ledger(
            await _checksums(settings, runtime),
            connections.connected,
            stripes={"grpc": stripes},
            metrics=HandOffMetrics(runtime.metrics.registry),
        )
        chooser = Chooser(
            runtime.engine,
            runtime.runner.compatibility,
            settings,
            colocated=settings.local_prefill,
        )
        service = DecodeService(
            runtime,
            Attempts(runtime, client, readers, ledger, chooser),
            queue_limit=settings.session_queue,
        )
        try:
            async with prefill_role(kv_address)(runtime, services) as prefill, started(readers):
                services.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, service)
                yield Profile(
                    roles=ROLES[settings.role],
                    transports={**prefill.transports, Role.DECODE: capabilities(readers)},
                    served_name=settings.served_name,
                    local_prefill=settings.local_prefill,
                    role_grace=settings.role_grace,
                    prefill_decisions=chooser.decisions,
                    kv_pairings=ledger.pairings,
                )
        finally:
            await routes.close()
            await connections.close()

    return role


async def _checksums(settings: DecodeSettings, runtime: Runtime) -> Policy:
    """When to ask for checksums, which is measured here where it depends on their cost."""
    rate = 0.0
    if settings.kv_checksums == "auto":
        block_bytes = runtime.runner.compatibility.block_bytes
        rate = await asyncio.to_thread(measure_rate, block_bytes)
        log.info("crc-32c measured", gb_per_s=round(rate / 1e9, 1))
    return Policy(settings.kv_checksums, rate)
