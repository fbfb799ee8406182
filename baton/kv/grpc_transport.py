"""KV over gRPC: the decode worker calls KvService.Read on a connection of its own.

The connection is not the control channel's, so the first token never waits behind KV. Back
pressure is HTTP/2's: the sender takes the next piece out of the pool when the last one has been
accepted by the connection, so memory in flight is a few pieces, whatever the prompt's length.
Frames bypass protobuf's copies (encoding.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from baton.channels import KV_FRAME_BYTES
from baton.errors import BatonError, InvalidRequest, PrefillLost
from baton.kv.connections import Connection, Connections
from baton.kv.encoding import decode, encode
from baton.kv.framing import Cutter, Piece
from baton.kv.progress import Progress
from baton.kv.transport import Sink, Source, Terms
from baton.settings import MAX_STRIPES
from baton.streams import Writer
from baton.tasks import group
from baton.tls.names import Party
from baton.v1 import kv_pb2

NAME, VERSION = "grpc", 1
_SERVICE, _METHOD = "baton.v1.KvService", "Read"

Write = Callable[[bytes], Awaitable[None]]


class GrpcOffer:
    """One hand-off, open until ``close``. Implements ``Offer``."""

    told = False

    def __init__(self, source: Source, address: str, forget: Callable[[bytes], None]) -> None:
        self.token = secrets.token_bytes(16)
        self.choice = kv_pb2.TransportChoice(name=NAME, address=address)
        self._source = source
        self._forget = forget
        self._progress = Progress(source.shape)
        self._readings: set[asyncio.Task[None]] = set()
        self._stripes = 0  # as the first reader said
        self._taken: set[int] = set()

    def ready(self, layer: int, end: int) -> None:
        self._progress.advance(layer, end)

    def close(self) -> None:
        self._forget(self.token)
        for reading in self._readings:
            reading.cancel()

    async def stream(self, request: kv_pb2.KvReadRequest, write: Write) -> bool:
        """Write every frame of one stripe as it is computed; False when closed before the end.

        Raises InvalidRequest for a stripe that does not exist or was taken before, and what
        the source's ``hold`` raises when the blocks are gone.
        """
        self._take(request.stripe, request.stripes)
        async with group() as tasks:
            reading = tasks.create_task(self._send(request, write), name="kv read")
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)
        return not reading.cancelled()

    def _take(self, stripe: int, stripes: int) -> None:
        if not 0 <= stripe < stripes <= MAX_STRIPES:
            raise InvalidRequest(
                f"stripe {stripe} of {stripes} cannot be read: there are at most {MAX_STRIPES}"
            )
        if stripes != (self._stripes or stripes) or stripe in self._taken:
            raise InvalidRequest(
                f"stripe {stripe} of {stripes} cannot be read: "
                f"taken are {sorted(self._taken)} of {self._stripes}"
            )
        self._stripes = stripes
        self._taken.add(stripe)

    async def _send(self, request: kv_pb2.KvReadRequest, write: Write) -> None:
        layers = range(request.stripe, self._source.shape.layers, request.stripes)
        cutter = Cutter(self._source.shape, KV_FRAME_BYTES, layers)
        with self._source.hold():
            async with aclosing(self._progress.pieces(cutter)) as pieces:
                async for piece in pieces:
                    blocks = await self._source.read(piece)
                    await write(encode(piece, blocks, self._source.sums_of_blocks(blocks)))


class GrpcOutlet:
    """The prefill side: every open offer, and the service that serves them. An ``Outlet``."""

    name, version, unavailable = NAME, VERSION, ""

    def __init__(self, patience: float, address: str = "") -> None:
        """``patience``: seconds that a reader gets to take the last piece once its call has ended;
        ``address``: of the KV service, where it is not that of the Prefill call."""
        self._patience = patience
        self._address = address
        self._offers: dict[bytes, GrpcOffer] = {}

    async def start(self) -> None:
        """Whoever registers ``handler`` starts its server."""

    async def close(self) -> None:
        """Readings end with their offers, the rest with the server."""

    def open(self, source: Source) -> GrpcOffer:
        offer = GrpcOffer(source, self._address, self._forget)
        self._offers[offer.token] = offer
        return offer

    def _forget(self, token: bytes) -> None:
        self._offers.pop(token, None)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Serves KvService.Read. Frames are bytes already: no serialiser."""
        method = grpc.unary_stream_rpc_method_handler(
            self._read, request_deserializer=kv_pb2.KvReadRequest.FromString
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})

    async def _read(
        self,
        request: kv_pb2.KvReadRequest,
        context: grpc.aio.ServicerContext[kv_pb2.KvReadRequest, bytes],
    ) -> None:
        """One stripe, which ends with the Prefill call whether or not its reader reads."""
        write = Writer(context, self._patience)
        offer = self._offers.get(request.kv_token)
        if offer is None:
            why = "no such hand-off: its Prefill call has ended"
            await write.abort(grpc.StatusCode.NOT_FOUND, why)
            return
        try:
            whole = await offer.stream(request, write)
        except BatonError as error:
            await write.abort(error.grpc_code, error.message)
            return
        if not whole:
            await write.abort(grpc.StatusCode.ABORTED, "the Prefill call has ended")


class GrpcReader:
    """The decode side. Implements ``Reader``."""

    name, version, unavailable, checksums = NAME, VERSION, "", True

    def __init__(
        self, connections: Connections, stripes: int = 1, party: Party = Party.PREFILL
    ) -> None:
        """``stripes``: connections that share one hand-off, each taking its layers. ``party``: who
        serves the KV."""
        self._connections = connections
        self._stripes = stripes
        self._party = party

    async def start(self) -> None:
        """It dials when it reads."""

    async def close(self) -> None:
        """The connections are another's."""

    async def offer(self, instance_id: str) -> kv_pb2.TransportOffer:
        return kv_pb2.TransportOffer(name=NAME, version=VERSION)

    async def read(self, terms: Terms, sink: Sink) -> None:
        async with group() as tasks:
            for stripe in range(self._stripes):
                tasks.create_task(self._read_stripe(terms, stripe, sink), name="kv stripe")
        sink.require_complete()

    async def _read_stripe(self, terms: Terms, stripe: int, sink: Sink) -> None:
        address = terms.choice.address or terms.address
        request = kv_pb2.KvReadRequest(kv_token=terms.token, stripe=stripe, stripes=self._stripes)
        async with self._connections.to(
            terms.instance_id, address, f"kv {stripe}", self._party
        ) as connection:
            await _read(connection, address, request, sink)


async def _read(
    connection: Connection, address: str, request: kv_pb2.KvReadRequest, sink: Sink
) -> None:
    method = connection.channel.unary_stream(
        f"/{_SERVICE}/{_METHOD}",
        request_serializer=kv_pb2.KvReadRequest.SerializeToString,
        response_deserializer=None,
    )
    frames, lost = method(request), ""
    try:
        async for message in frames:
            head, payload = decode(message)
            piece = Piece(head.layer, head.start_token, head.end_token)
            await sink.write(piece, payload, head.checksums)
    except grpc.aio.AioRpcError as error:
        connection.ended(error.code())
        lost = f"{error.code().name.lower()}: {error.details()}"
    finally:
        frames.cancel()
        del frames  # see Connections
    if lost:
        raise PrefillLost(f"reading KV from {address}: {lost}")
