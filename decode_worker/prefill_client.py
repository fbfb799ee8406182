"""The decode worker's side of a Prefill call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from baton import wire
from baton.errors import (
    BatonError,
    CapacityError,
    Draining,
    HandoffFailed,
    PrefillDraining,
    PrefillFull,
    PrefillLost,
    PrefillSilent,
    RelayRefused,
    WorkerFull,
)
from baton.generation import Generation, Timings
from baton.identity import Identity
from baton.kv import relay
from baton.kv.connections import Connections
from baton.kv.transport import Reader, Terms
from baton.liveness import Beat, Liveness, PeerSilent
from baton.tasks import group
from baton.tls.names import Party
from baton.v1 import common_pb2, kv_pb2, prefill_pb2, prefill_pb2_grpc
from decode_worker.routes import Route, Routes

T = TypeVar("T")

#: (layer, end position), called as the prefill worker says that KV may be read.
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A prefill worker: where, which instance is meant, and how busy the gateway finds it."""

    address: str
    instance_id: str
    queued_tokens: int = 0  #: prompt tokens waiting for compute there
    prefill_token_s: float = 0.0  #: seconds of compute per prompt token; 0 when unknown


class PrefillCall:
    """One call under way. ``accepted``, ``first_token`` and ``done`` are done in this order.

    What goes wrong is raised by ``PrefillClient.call``, around whatever its body does.
    """

    def __init__(
        self, target: Target, route: Route, liveness: Liveness, checked: Collection[str]
    ) -> None:
        """``checked``: transports whose blocks are to come with checksums."""
        loop = asyncio.get_running_loop()
        self.target = target
        self._route = route
        self._checked = checked
        self.accepted: asyncio.Future[prefill_pb2.PrefillAccepted] = loop.create_future()
        self.first_token: asyncio.Future[prefill_pb2.FirstToken] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.lost = False  #: the worker does not answer any more, or another does
        self.timings = Timings()  #: the last that were told
        self.kv_since = 0.0  #: loop time when KV was first there to be read
        self.first_token_at = 0.0  #: loop time
        self.on_layer: OnLayer = _ignore  #: set by the body before it next awaits
        self._liveness = liveness
        self._received = False
        self._requests: asyncio.Queue[prefill_pb2.PrefillRequest | None] = asyncio.Queue()

    def terms(self, accepted: prefill_pb2.PrefillAccepted) -> Terms:
        """How its KV is read."""
        return Terms(
            address=self.target.address,
            instance_id=self.target.instance_id,
            token=accepted.kv_token,
            choice=accepted.transport,
        )

    def received(self, nbytes: int) -> None:
        """All KV is here: the prefill worker may free its blocks, and will say ``done``.

        From here on its loss is no failure: nothing more is needed of it.
        """
        self._received = True
        received = prefill_pb2.KvReceived(bytes=nbytes)
        self._requests.put_nowait(prefill_pb2.PrefillRequest(received=received))

    async def requests(
        self, start: prefill_pb2.PrefillStart
    ) -> AsyncIterator[prefill_pb2.PrefillRequest]:
        """What goes up, for gRPC to pull until ``hang_up``."""
        yield prefill_pb2.PrefillRequest(start=start)
        while (request := await self._requests.get()) is not None:
            yield request

    def hang_up(self) -> None:
        """End ``requests``: gRPC leaves its task waiting there when a call breaks by itself."""
        self._requests.put_nowait(None)

    async def listen(self, events: AsyncIterable[prefill_pb2.PrefillEvent]) -> None:
        """Take in what comes down until the call is done. Raises what it ends with otherwise."""
        try:
            async for event in events:
                self._liveness.heard()
                self._take(event)
            why = "the call ended before it was done"
        except grpc.aio.AioRpcError as error:
            self.lost = error.code() is grpc.StatusCode.UNAVAILABLE
            why = f"{error.code().name.lower()}: {error.details()}"
        finally:
            del events  # see Connections
        self._over(why)

    async def beat(self) -> None:
        """Signs of life, both ways. If this worker was stopped itself, that says nothing of others
        who call the same peer."""
        try:
            await self._liveness.run(self._send_beat)
        except PeerSilent as silence:
            self.lost = True
            self._over(str(silence), PrefillSilent if self._liveness.steady else PrefillLost)

    def _send_beat(self, sequence: int) -> None:
        beat = common_pb2.Heartbeat(sequence=sequence)
        self._requests.put_nowait(prefill_pb2.PrefillRequest(heartbeat=beat))

    def _take(self, event: prefill_pb2.PrefillEvent) -> None:
        now = asyncio.get_running_loop().time()
        match event.WhichOneof("message"):
            case "accepted":
                self._check(event.accepted)
                self.kv_since = now if event.accepted.hit_tokens else 0.0
                _resolve(self.accepted, event.accepted)
            case "layer_ready":
                self.kv_since = self.kv_since or now
                self.on_layer(event.layer_ready.layer, event.layer_ready.end_token)
            case "first_token":
                self.first_token_at = now
                self.timings = wire.timings_from_wire(event.first_token.timings)
                _resolve(self.first_token, event.first_token)
            case "done":
                self._over("done was said before all KV was received")
            case "error" if self._received:
                self._over(event.error.message)
            case "error":
                raise self._refused(wire.error_from_wire(event.error))

    def _check(self, accepted: prefill_pb2.PrefillAccepted) -> None:
        """Raises PrefillLost when it is not the instance that was meant, HandoffFailed when it
        does not do with checksums as it was asked."""
        theirs = wire.identity_from_wire(accepted.identity)
        if theirs.instance_id != self.target.instance_id:
            self.lost = True
            raise self._lost(
                f"instance {theirs.instance_id} answers, {self.target.instance_id} was expected"
            )
        asked, answered = accepted.transport.name in self._checked, accepted.transport.checksums
        if answered != asked:
            raise HandoffFailed(
                f"prefill worker {self.target.address}: checksums were to be "
                f"{'on' if asked else 'off'}, but are {'on' if answered else 'off'}"
            )

    def _refused(self, error: BatonError) -> BatonError:
        """What the request can do nothing about is the prefill worker's loss, not ours."""
        if isinstance(error, WorkerFull):  # that worker is well: the request waits for its room
            return PrefillFull(f"prefill worker {self.target.address}: {error.message}")
        if isinstance(error, Draining):
            return PrefillDraining(f"prefill worker {self.target.address}: {error.message}")
        if isinstance(error, CapacityError):
            return self._lost(f"{error.code}: {error.message}")
        if isinstance(error, RelayRefused):
            return RelayRefused(f"relay {self._route.relay}: {error.message}")
        return error

    def _lost(self, why: str, error: type[PrefillLost] = PrefillLost) -> PrefillLost:
        through = f" through relay {self._route.relay}" if self._route.relay else ""
        return error(f"prefill worker {self.target.address}{through}: {why}")

    def _over(self, why: str, error: type[PrefillLost] = PrefillLost) -> None:
        """The call has ended. Raises ``error``, unless all that was wanted is here."""
        if not self._received:
            raise self._lost(why, error)
        _resolve(self.done, None)


def _ignore(_: int, __: int) -> None:
    """For a listener that nobody asked for."""


def _resolve(future: asyncio.Future[T], value: T) -> None:
    """Tell whoever waits, unless it was cancelled while it waited."""
    if not future.done():
        future.set_result(value)


class PrefillClient:
    """Calls prefill workers, over one control connection per instance, or through a relay."""

    def __init__(
        self,
        identity: Identity,
        beat: Beat,
        connections: Connections,
        readers: Sequence[Reader],
        routes: Routes,
    ) -> None:
        self._identity = identity
        self._beat = beat
        self._connections = connections
        self._readers = readers
        self._routes = routes

    @asynccontextmanager
    async def call(
        self, target: Target, generation: Generation, from_token: int, *, checksums: bool
    ) -> AsyncIterator[PrefillCall]:
        """A Prefill call for as long as the body runs; the body is cancelled when it fails.

        ``checksums``: its KV is to come with them, where the transport knows any.

        Raises PrefillLost when the worker cannot be reached, dies or is another instance,
        PrefillSilent when nothing is heard of it, PrefillFull when it has no room, PrefillDraining
        when it leaves, RelayRefused when the relay does not let the call through; else what was
        answered (IncompatiblePeer, DeadlineExceeded, KvOverflow, ...).
        """
        instance_id = target.instance_id
        route = await self._routes.to(instance_id, target.address)
        offers = await self._offers(instance_id, route, checksums)
        start = prefill_pb2.PrefillStart(
            identity=wire.identity_to_wire(self._identity),
            generation=wire.generation_to_wire(generation),
            from_token=from_token,
            transports=offers,
        )
        address = route.relay or target.address
        party = Party.RELAY if route.relay else Party.PREFILL
        peer = route.relay or instance_id
        async with self._connections.to(peer, address, "control", party) as line:
            checked = [offer.name for offer in offers if offer.checksums]
            call = PrefillCall(target, route, Liveness(self._beat), checked)
            events = prefill_pb2_grpc.PrefillServiceStub(line.channel).Prefill(
                call.requests(start),
                metadata=((relay.TARGET, instance_id),) if route.relay else (),
            )
            try:
                async with group() as tasks:
                    listening = tasks.create_task(call.listen(events), name="prefill call")
                    beating = tasks.create_task(call.beat(), name="prefill call beat")
                    yield call
                    listening.cancel()
                    beating.cancel()
            finally:
                call.hang_up()
                events.cancel()
                del events  # see Connections
                if call.lost:
                    line.lost = True
                    self._routes.lost(instance_id)

    async def _offers(
        self, instance_id: str, route: Route, checksums: bool
    ) -> list[kv_pb2.TransportOffer]:
        """How KV can come from that instance, beside a call that goes this way."""
        offers = [await reader.offer(instance_id) for reader in self._readers]
        for reader, offer in zip(self._readers, offers, strict=True):
            offer.unavailable = offer.unavailable or route.obstacle(offer.name)
            offer.checksums = checksums and reader.checksums
        return offers
