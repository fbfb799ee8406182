"""Both ends of Baton's own transports, as the workers use them, but for the computing.

Everything is ready when the reading starts, so what is measured is the transport alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from tenacity import AsyncRetrying, stop_after_attempt

from baton import channels
from baton.errors import BatonError, PrefillLost
from baton.identity import new_instance_id
from baton.kv.connections import Connections
from baton.kv.grpc_transport import GrpcOutlet, GrpcReader
from baton.kv.nixl.outlet import NixlOutlet
from baton.kv.nixl.reader import NixlReader
from baton.kv.shm.outlet import ShmOutlet
from baton.kv.shm.reader import ShmReader
from baton.kv.transport import Outlet, Reader, Sink, Source, Store, Terms, started
from baton.settings import HandoffSettings, ReadingSettings
from baton.v1 import kv_pb2
from bench.job import Job, Memory, Receiver, Sender, Where

_SHM_BYTES: int = HandoffSettings.model_fields["shm_bytes"].default
#: Seconds that a reader gets to take the last piece of a hand-off that is over.
PATIENCE = 3.0
WINDOW_BYTES: int = ReadingSettings.model_fields["grpc_window_bytes"].default


class OutletSender:
    """The prefill side, whatever the transport."""

    def __init__(self, outlet: Outlet, address: str, instance_id: str, memory: Memory) -> None:
        self._outlet = outlet
        self._peer = {"address": address, "instance_id": instance_id}
        self._memory = memory

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        store, shape = job.store(self._memory), job.shape
        offer = self._outlet.open(Source(shape, store, job.table(0), nullcontext))
        for layer in range(shape.layers):
            offer.ready(layer, shape.end)
        try:
            choice = offer.choice.SerializeToString().hex()
            yield {**self._peer, "token": offer.token.hex(), "choice": choice}
        finally:
            offer.close()


class SlowStore:
    """Writes into another store, but no more than so many bytes a second."""

    def __init__(self, store: Store, bytes_per_s: float) -> None:
        self._store = store
        self._bytes_per_s = bytes_per_s
        self.region, self.once_written, self.pin = store.region, store.once_written, store.pin

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        return await self._store.read(layer, blocks)

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        await self._store.read_into(layer, blocks, target)

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        await self._store.write(layer, blocks, data)
        await asyncio.sleep(data.nbytes / self._bytes_per_s)


class ReaderReceiver:
    """The decode side, whatever the transport."""

    def __init__(self, reader: Reader, memory: Memory) -> None:
        self._reader = reader
        self._memory = memory
        self._reached: set[str] = set()

    async def read(self, job: Job, where: Where) -> None:
        """Raises BatonError when it fails. Returns early when the job's patience is over."""
        await self._reach(where["instance_id"])
        store: Store = job.store(self._memory)
        if job.slow_mb_s:
            store = SlowStore(store, job.slow_mb_s * 1e6)
        sink = Sink(job.shape, store, job.table(1))
        for layer in range(job.shape.layers):
            sink.ready(layer, job.shape.end)
        token = bytes.fromhex(where["token"])
        choice = kv_pb2.TransportChoice.FromString(bytes.fromhex(where["choice"]))
        terms = Terms(where["address"], where["instance_id"], token, choice)
        patience = asyncio.timeout(job.patience_s or None)
        try:
            async with patience:
                await self._reader.read(terms, sink)
        except TimeoutError:
            if not patience.expired():
                raise

    async def _reach(self, instance_id: str) -> None:
        """Offer to read from it, as workers do before each hand-off, so that it is dialled.

        They take another transport where that was too slow, as on a busy machine; here it is
        tried again. Raises PrefillLost after ten times.
        """
        if instance_id in self._reached:
            return
        async for attempt in AsyncRetrying(stop=stop_after_attempt(10), reraise=True):
            with attempt:
                offer = await self._reader.offer(instance_id)
                if offer.unavailable:
                    raise PrefillLost(f"{offer.name} from {instance_id}: {offer.unavailable}")
        self._reached.add(instance_id)


@asynccontextmanager
async def grpc_sender(_: Job, memory: Memory) -> AsyncIterator[Sender]:
    outlet, server = GrpcOutlet(PATIENCE), channels.server()
    server.add_generic_rpc_handlers((outlet.handler(),))
    port = channels.bind(server, "127.0.0.1", 0)
    await server.start()
    try:
        yield OutletSender(outlet, f"127.0.0.1:{port}", new_instance_id(), memory)
    finally:
        await server.stop(None)


@asynccontextmanager
async def grpc_receiver(_: Job, memory: Memory) -> AsyncIterator[Receiver]:
    connections = Connections(WINDOW_BYTES)
    try:
        yield ReaderReceiver(GrpcReader(connections), memory)
    finally:
        await connections.close()


def shm_sender(job: Job, memory: Memory) -> AbstractAsyncContextManager[Sender]:
    instance_id = new_instance_id()
    outlet = ShmOutlet(instance_id, total_bytes=_SHM_BYTES, block_bytes=job.shape.block_bytes)
    return _sending(outlet, instance_id, memory)


def shm_receiver(_: Job, memory: Memory) -> AbstractAsyncContextManager[Receiver]:
    return _receiving(ShmReader(), memory)


def nixl_sender(job: Job, memory: Memory) -> AbstractAsyncContextManager[Sender]:
    instance_id = new_instance_id()
    outlet = NixlOutlet(instance_id, job.store(memory).region)
    return _sending(outlet, instance_id, memory)


def nixl_receiver(job: Job, memory: Memory) -> AbstractAsyncContextManager[Receiver]:
    return _receiving(NixlReader(job.store(memory).region), memory)


@asynccontextmanager
async def _sending(outlet: Outlet, instance_id: str, memory: Memory) -> AsyncIterator[Sender]:
    """Of a transport within a host. Raises BatonError where there is none."""
    async with started([outlet]):
        if outlet.unavailable:
            raise BatonError(f"{outlet.name} is unavailable here: {outlet.unavailable}")
        yield OutletSender(outlet, "this host", instance_id, memory)


@asynccontextmanager
async def _receiving(reader: Reader, memory: Memory) -> AsyncIterator[Receiver]:
    async with started([reader]):
        yield ReaderReceiver(reader, memory)
