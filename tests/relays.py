"""Relays in this process, and a prefill worker that is only its gRPC face, to be relayed to.

async with relayed(kv_transports=["relay"]) as (c, r), session(c.decode[0]) as s:
    ...
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from baton import channels
from baton.cli import ports
from baton.kv.relay import TARGET
from baton.settings import RelaySettings
from baton.tls.names import Party
from baton.v1 import kv_pb2, kv_pb2_grpc, prefill_pb2, prefill_pb2_grpc, worker_pb2
from gateway.fleet import Health
from gateway.relay.server import Service, running
from tests.fakes import FakeWorker, eventually
from tests.tls import Fleet
from tests.workers import BEAT, Cluster, cluster

#: Refuses connections at once.
NOWHERE = "127.0.0.1:1"


@asynccontextmanager
async def relay(
    prefill: Sequence[str], decode: Sequence[str], port: int = 0, **settings: Any
) -> AsyncIterator[Service]:
    """A relay that knows these addresses, once every worker there is healthy."""
    chosen = RelaySettings(
        prefill=list(prefill), decode=list(decode), port=port, **(BEAT | settings)
    )
    async with running(chosen) as service:
        await eventually(lambda: all(m.health is Health.HEALTHY for m in service.registry.members))
        yield service


@asynccontextmanager
async def relayed(
    prefill: int = 1, decode: int = 1, *, tls: Fleet | None = None, **settings: Any
) -> AsyncIterator[tuple[Cluster, Service]]:
    """Workers and a relay between them that the decode workers know. At the end nothing is left
    of any call."""
    port = next(ports.free("127.0.0.1"))
    own = tls.settings("r0", Party.RELAY) if tls else {}
    async with (
        cluster(prefill, decode, relay=f"127.0.0.1:{port}", tls=tls, **settings) as c,
        relay([w.address for w in c.prefill], [w.address for w in c.decode], port, **own) as r,
    ):
        yield c, r
        await c.settle()
        await eventually(lambda: not r.relay.calls and not r.relay.reads)


@dataclass
class FakePrefill(FakeWorker):
    """Accepts every Prefill call (or is silent), says no more, and sends frames to readers."""

    roles: Sequence[int] = (worker_pb2.ROLE_PREFILL,)
    frames: Sequence[bytes] = ()
    accepts: bool = True
    token: bytes = b"t" * 16  #: of the first call; others have their own
    calls: int = 0  #: under way
    reads: int = 0  #: under way
    sent: int = 0  #: frames
    requests: list[prefill_pb2.PrefillRequest] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)  #: given out

    async def __aenter__(self) -> FakePrefill:
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(_Prefill(self), self._server)
        method = grpc.unary_stream_rpc_method_handler(
            self._read, request_deserializer=kv_pb2.KvReadRequest.FromString
        )
        handler = grpc.method_handlers_generic_handler("baton.v1.KvService", {"Read": method})
        self._server.add_generic_rpc_handlers((handler,))
        await super().__aenter__()
        return self

    async def _read(self, request: kv_pb2.KvReadRequest, context: Any) -> AsyncIterator[bytes]:
        assert request.kv_token in self.tokens
        self.reads += 1
        try:
            for frame in self.frames:
                yield frame
                self.sent += 1
        finally:
            self.reads -= 1


class _Prefill(prefill_pb2_grpc.PrefillServiceServicer):
    def __init__(self, worker: FakePrefill) -> None:
        self._worker = worker

    async def Prefill(  # noqa: N802
        self, requests: AsyncIterator[prefill_pb2.PrefillRequest], context: Any
    ) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        self._worker.calls += 1
        try:
            async for request in requests:
                self._worker.requests.append(request)
                if self._worker.accepts and request.WhichOneof("message") == "start":
                    yield prefill_pb2.PrefillEvent(accepted=self._accepted())
        finally:
            self._worker.calls -= 1

    def _accepted(self) -> prefill_pb2.PrefillAccepted:
        worker = self._worker
        token = worker.token if worker.calls == 1 else secrets.token_bytes(16)
        worker.tokens.append(token)
        return prefill_pb2.PrefillAccepted(identity=worker.identity(), kv_token=token)


class Caller:
    """A decode worker's side of a relay, by hand."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._open: list[Any] = []

    async def prefill(self, caller: str, target: str | None) -> Any:
        """A call under way that says it is ``caller``; without ``target`` it names none."""
        start = prefill_pb2.PrefillStart()
        start.identity.instance_id = caller
        return await self.start(start, target)

    async def start(self, start: prefill_pb2.PrefillStart, target: str | None) -> Any:
        """A call under way; it gives no signs of life."""
        metadata = ((TARGET, target),) if target is not None else ()
        call = prefill_pb2_grpc.PrefillServiceStub(self._channel).Prefill(metadata=metadata)
        self._open.append(call)
        await call.write(prefill_pb2.PrefillRequest(start=start))
        return call

    def read(self, token: bytes, stripes: int = 1) -> Any:
        """The first of so many stripes."""
        call = kv_pb2_grpc.KvServiceStub(self._channel).Read(
            kv_pb2.KvReadRequest(kv_token=token, stripes=stripes)
        )
        self._open.append(call)
        return call

    def close(self) -> None:
        for call in self._open:
            call.cancel()


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Caller]:
    """Calls to a relay; cancelled at the end."""
    async with channels.connect(address, shared=False, window=2**20) as channel:
        caller = Caller(channel)
        try:
            yield caller
        finally:
            caller.close()
            await asyncio.sleep(0)
