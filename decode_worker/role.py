"""What makes a worker a decode worker: its service, and its connections to prefill workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baton.kv.connections import Connections
from baton.kv.grpc_transport import GrpcReader
from baton.kv.nixl.reader import NixlReader
from baton.kv.shm.reader import ShmReader
from baton.kv.transport import Reader, capabilities
from baton.settings import DecodeSettings
from baton.v1 import decode_pb2_grpc, worker_pb2
from decode_worker.attempt import Attempts
from decode_worker.prefill_choice import Chooser
from decode_worker.prefill_client import PrefillClient
from decode_worker.service import DecodeService
from model.worker.process import Role
from model.worker.runtime import Profile, Runtime
from model.worker.server import LateHandlers


def decode_role(settings: DecodeSettings) -> Role:
    """Serve sessions, as ``settings`` say."""

    @asynccontextmanager
    async def role(runtime: Runtime, services: LateHandlers) -> AsyncIterator[Profile]:
        connections, shm, nixl = Connections(), ShmReader(), NixlReader(runtime.store.region)
        known: dict[str, Reader] = {"grpc": GrpcReader(connections), "shm": shm, "nixl": nixl}
        readers = [known[name] for name in settings.kv_transports]
        client = PrefillClient(runtime.identity, runtime.beat, connections, readers)
        chooser = Chooser(runtime.engine, settings)
        service = DecodeService(
            runtime,
            Attempts(runtime, client, readers, chooser),
            queue_limit=settings.session_queue,
        )
        services.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, service)
        if "nixl" in settings.kv_transports:
            await nixl.start()
        try:
            yield Profile(
                roles=[worker_pb2.ROLE_DECODE],
                served_name=settings.served_name,
                local_prefill=settings.local_prefill,
                transports=capabilities(readers),
                prefill_decisions=chooser.decisions,
            )
        finally:
            await shm.close()
            await nixl.close()
            await connections.close()

    return role
