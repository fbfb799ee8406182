"""One Prefill call, from its first message to its last. Everything it holds, it frees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from baton import wire
from baton.errors import ClientGone, InvalidRequest
from baton.generation import Timings
from baton.kv.framing import Shape
from baton.kv.transport import Offer, Outlet, Source, negotiate
from baton.liveness import Liveness
from baton.tasks import group, within
from baton.v1 import common_pb2, kv_pb2, prefill_pb2
from model.worker.requests import from_wire
from model.worker.runtime import Runtime
from model.worker.sequences import LiveSequence
from prefill_worker.outbox import Outbox

Requests = AsyncIterator[prefill_pb2.PrefillRequest]
Write = Callable[[prefill_pb2.PrefillEvent], Awaitable[None]]


class PrefillCall:
    """Computes one prompt for a decode worker and hands its KV over.

        start -> checked -> blocks reserved -> accepted
              -> layer ready, layer ready, ... -> first token    (KV is read beside the call)
              -> received -> done

    The blocks are the call's while ``run`` runs. However it ends (done, cancelled, peer silent,
    deadline, error) they are given up, at once; those that the running step or a reading still
    uses are quarantined until that is over.
    """

    def __init__(
        self, runtime: Runtime, outlets: Sequence[Outlet], requests: Requests, write: Write
    ) -> None:
        self._runtime = runtime
        self._outlets = outlets
        self._requests = requests
        self._write = write
        self._liveness = Liveness(runtime.beat)
        self._outbox = Outbox()
        self._received = asyncio.Event()

    async def run(self) -> None:
        """Raises BatonError when the call ends early, PeerSilent when its peer is gone."""
        start = await self._start()
        generation = from_wire(start.generation, self._runtime.max_model_len)
        outlet, downgrades = negotiate(start.transports, self._outlets)
        shape = self._shape(start.from_token, generation.tokens)
        with (
            self._runtime.sequence(generation, keep=True) as sequence,
            self._offer(outlet, shape, sequence) as offer,
        ):
            self._accept(sequence, offer, downgrades)
            async with group() as tasks:
                writer = tasks.create_task(self._outbox.drain(self._write), name="prefill writer")
                reader = tasks.create_task(self._read(), name="prefill reader")
                beat = tasks.create_task(self._liveness.run(self._outbox.beat), name="prefill beat")
                async with within("prefill", generation.deadlines.prefill):
                    timings = await self._first_token(sequence)
                await self._received.wait()
                self._outbox.done(timings)
                await writer
                reader.cancel()
                beat.cancel()

    async def _start(self) -> prefill_pb2.PrefillStart:
        """The first message, from a peer that this worker may pair with."""
        try:
            first = await asyncio.wait_for(anext(self._requests), self._runtime.beat.patience)
        except (StopAsyncIteration, TimeoutError):
            raise InvalidRequest("the call did not begin with a start message") from None
        if first.WhichOneof("message") != "start":
            raise InvalidRequest("the first message of a Prefill call must be its start")
        theirs = wire.identity_from_wire(first.start.identity)
        self._runtime.identity.require_pair(theirs)
        return first.start

    def _shape(self, start: int, end: int) -> Shape:
        """Raises InvalidRequest when KV is wanted from an impossible position."""
        compatibility = self._runtime.runner.compatibility
        return Shape(
            layers=compatibility.layers,
            block_size=compatibility.block_size,
            block_bytes=compatibility.block_bytes,
            start=start,
            end=end,
        )

    @contextmanager
    def _offer(self, outlet: Outlet, shape: Shape, sequence: LiveSequence) -> Iterator[Offer]:
        """The sequence's KV, open to be read for the body; what is cached can be read at once."""
        runtime = self._runtime

        @contextmanager
        def hold() -> Iterator[None]:
            with runtime.census.call(), runtime.sequences.hold(sequence.seq_id):
                yield

        source = Source(shape, runtime.store, sequence.reservation.block_table, hold)
        offer = outlet.open(source)

        def layer_ready(layer: int, end: int) -> None:
            offer.ready(layer, end)
            runtime.store.once_written(layer, partial(self._outbox.layer_ready, layer, end))

        sequence.on_layer = layer_ready
        for layer in range(shape.layers):
            offer.ready(layer, sequence.reservation.hit_tokens)
        try:
            yield offer
        finally:
            offer.close()

    def _accept(self, sequence: LiveSequence, offer: Offer, downgrades: Sequence[str]) -> None:
        choice = kv_pb2.TransportChoice()
        choice.CopyFrom(offer.choice)
        choice.downgrades.extend(downgrades)
        accepted = prefill_pb2.PrefillAccepted(
            identity=wire.identity_to_wire(self._runtime.identity),
            hit_tokens=sequence.reservation.hit_tokens,
            queued_tokens=sequence.reservation.queued_tokens,
            kv_token=offer.token,
            transport=choice,
        )
        self._outbox.put(prefill_pb2.PrefillEvent(accepted=accepted))

    async def _first_token(self, sequence: LiveSequence) -> common_pb2.Timings:
        """Say the first token as soon as it is drawn; returns the phases so far."""
        first = await sequence.first
        assert first.timings is not None, "the first token comes with timings"
        timings = wire.timings_to_wire(
            Timings(
                queue=first.timings.queued_s,
                prefill=first.timings.prefill_s,
                prefill_cached_tokens=first.timings.cached_tokens,
                prefill_instance_id=self._runtime.identity.instance_id,
            )
        )
        token = prefill_pb2.FirstToken(token_id=first.token_id, timings=timings)
        self._outbox.put(prefill_pb2.PrefillEvent(first_token=token))
        return timings

    async def _read(self) -> None:
        """Heartbeats, then word that all KV has arrived. Raises ClientGone at any other end."""
        async for request in self._requests:
            self._liveness.heard()
            match request.WhichOneof("message"):
                case "received":
                    self._received.set()
                case "start":
                    raise InvalidRequest("a Prefill call starts once")
        if not self._received.is_set():
            raise ClientGone("the decode worker ended the call before it had all KV")
