"""The grpc transport with TLS both ways, to be compared with it in the clear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from baton.identity import new_instance_id
from baton.kv.connections import Connections
from baton.kv.grpc_transport import GrpcOutlet, GrpcReader
from baton.tls.authority import Authority
from baton.tls.files import Files
from baton.tls.links import Links
from baton.tls.names import Party
from bench.handoff import PATIENCE, WINDOW_BYTES, OutletSender, ReaderReceiver
from bench.job import Job, Memory, Receiver, Sender, Where

_DIRECTORY = "certificates"


class _TellingSender:
    """Says beside the rest where the certificates are."""

    def __init__(self, sender: OutletSender, directory: str) -> None:
        self._sender = sender
        self._directory = directory

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        async with self._sender.offer(job) as where:
            yield {**where, _DIRECTORY: self._directory}


@asynccontextmanager
async def grpc_tls_sender(_: Job, memory: Memory) -> AsyncIterator[Sender]:
    with TemporaryDirectory() as directory:
        authority = Authority(Path(directory))
        authority.issue("d0", [Party.DECODE])
        authority.issue("p0", [Party.PREFILL])
        links = _links(directory, "p0", Party.PREFILL)
        outlet, server = GrpcOutlet(PATIENCE), links.server()
        server.add_generic_rpc_handlers((outlet.handler(),))
        port = links.bind(server, "127.0.0.1", 0)
        await server.start()
        try:
            sender = OutletSender(outlet, f"127.0.0.1:{port}", new_instance_id(), memory)
            yield _TellingSender(sender, directory)
        finally:
            await server.stop(None)


class _TlsReceiver:
    """Connects once it knows with which certificate."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.connections: Connections | None = None

    async def read(self, job: Job, where: Where) -> None:
        """As ``ReaderReceiver.read``."""
        if self.connections is None:
            links = _links(where[_DIRECTORY], "d0", Party.DECODE)
            self.connections = Connections(WINDOW_BYTES, links)
        await ReaderReceiver(GrpcReader(self.connections), self._memory).read(job, where)


@asynccontextmanager
async def grpc_tls_receiver(_: Job, memory: Memory) -> AsyncIterator[Receiver]:
    receiver = _TlsReceiver(memory)
    try:
        yield receiver
    finally:
        if receiver.connections is not None:
            await receiver.connections.close()


def _links(directory: str, id: str, party: Party) -> Links:
    certificate, key, authorities = (
        Path(directory) / f for f in (f"{id}.pem", f"{id}.key", "ca.pem")
    )
    return Links(Files(certificate, key, authorities, party))
