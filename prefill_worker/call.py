"""One Prefill call, from its first message to its last. Everything it holds, it frees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import structlog

from baton import wire
from baton.errors import ClientGone, InvalidRequest
from baton.generation import Generation, Timings
from baton.identity import require_pair
from baton.kv.framing import Piece, Shape
from baton.kv.lag import Lag
from baton.kv.trace import NO_LAYER, Trace
from baton.kv.transport import Agreement, Offer, Outlet, Source, negotiate
from baton.liveness import Liveness
from baton.tasks import group, within
from baton.tracing import Span
from baton.v1 import common_pb2, kv_pb2, prefill_pb2
from model.engine.events import SequenceTimings
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
        # For every line that is logged from here on, in this task and those that it makes.
        structlog.contextvars.bind_contextvars(request_id=start.generation.request_id)
        generation = from_wire(start.generation, self._runtime.max_model_len)
        with self._span(generation).during() as span:
            await self._hand_over(start, generation, span)

    async def _hand_over(
        self, start: prefill_pb2.PrefillStart, generation: Generation, span: Span
    ) -> None:
        """Reserve, compute, offer, and wait until all is read."""
        agreed = negotiate(start.transports, self._outlets)
        compatibility = self._runtime.runner.compatibility
        shape = Shape.of(compatibility, start.from_token, generation.tokens)
        constraint = await self._runtime.constraint(generation)
        with (
            self._runtime.sequence(generation, constraint, keep=True) as sequence,
            self._trace(generation, shape) as trace,
            self._offer(agreed, shape, sequence, trace) as offer,
        ):
            self._accept(sequence, offer, agreed)
            async with group() as tasks:
                writer = tasks.create_task(self._outbox.drain(self._write), name="prefill writer")
                reader = tasks.create_task(self._read(), name="prefill reader")
                beat = tasks.create_task(self._liveness.run(self._outbox.beat), name="prefill beat")
                async with within("prefill", generation.deadlines.prefill):
                    timings = await self._first_token(sequence, trace, span)
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
        require_pair(prefill=self._runtime.identity, decode=theirs)
        return first.start

    def _span(self, generation: Generation) -> Span:
        key = generation.key
        return self._runtime.tracing.begin(
            "prefill",
            generation.traceparent,
            attributes={
                "baton.request_id": key.request_id,
                "baton.attempt": key.attempt,
                "baton.tokens": generation.tokens,
            },
        )

    def _trace(self, generation: Generation, shape: Shape) -> AbstractContextManager[Trace | None]:
        return self._runtime.tracer.hand_off("prefill", generation.key, shape.start, shape.end)

    @contextmanager
    def _offer(
        self, agreed: Agreement, shape: Shape, sequence: LiveSequence, trace: Trace | None
    ) -> Iterator[Offer]:
        """The sequence's KV, open to be read for the body; what is cached can be read at once.

        The engine hears when its reader lags behind, and lets other prompts go first.
        """
        runtime, hit_tokens = self._runtime, sequence.reservation.hit_tokens
        told = partial(runtime.engine.lag, sequence.seq_id)
        lag = Lag(shape, hit_tokens, runtime.settings.kv_lag_bytes, told)

        @contextmanager
        def hold() -> Iterator[None]:
            with runtime.census.call(), runtime.sequences.hold(sequence.seq_id):
                yield

        def taken(piece: Piece) -> None:
            lag.taken(piece)
            if trace is not None:
                trace.add("sent", piece.layer, piece.end)

        table = sequence.reservation.block_table
        source = Source(shape, runtime.store, table, hold, agreed.checksums, taken)
        offer = agreed.outlet.open(source)

        def layer_ready(layer: int, end: int, at: float) -> None:
            lag.computed(layer, end)
            offer.ready(layer, end)
            if offer.told or layer in (0, shape.layers - 1):
                told = partial(self._outbox.layer_ready, layer, end)
                runtime.store.once_written(layer, told)
            if trace is not None:
                trace.add("computed", layer, end, at)

        def shared(end: int, at: float) -> None:
            for layer in range(shape.layers):
                layer_ready(layer, end, at)

        sequence.on_layer, sequence.on_shared = layer_ready, shared
        for layer in range(shape.layers):
            offer.ready(layer, hit_tokens)
        try:
            yield offer
        finally:
            offer.close()

    def _accept(self, sequence: LiveSequence, offer: Offer, agreed: Agreement) -> None:
        choice = kv_pb2.TransportChoice()
        choice.CopyFrom(offer.choice)
        choice.downgrades.extend(agreed.downgrades)
        choice.checksums = agreed.checksums
        accepted = prefill_pb2.PrefillAccepted(
            identity=wire.identity_to_wire(self._runtime.identity),
            hit_tokens=sequence.reservation.hit_tokens,
            queued_tokens=sequence.reservation.queued_tokens,
            kv_token=offer.token,
            transport=choice,
        )
        self._outbox.put(prefill_pb2.PrefillEvent(accepted=accepted))

    async def _first_token(
        self, sequence: LiveSequence, trace: Trace | None, span: Span
    ) -> common_pb2.Timings:
        """Say the first token of each choice as soon as it is drawn; returns the phases so far."""
        since = time.monotonic()
        await sequence.first
        firsts = [await choice.first for choice in sequence.choices]
        first = firsts[0]
        if trace is not None:
            trace.add("first token", NO_LAYER, sequence.reservation.total_tokens)
        assert first.timings is not None, "the first token comes with timings"
        _tell(span, since, first.timings)
        self._runtime.metrics.prefilled(first.timings)
        timings = wire.timings_to_wire(
            Timings(
                queue=first.timings.queued_s,
                prefill=first.timings.prefill_s,
                prefill_cached_tokens=first.timings.cached_tokens,
                prefill_instance_id=self._runtime.identity.instance_id,
            )
        )
        token = prefill_pb2.FirstToken(
            token_id=first.token_id,
            timings=timings,
            more_token_ids=[other.token_id for other in firsts[1:]],
            logprobs=[wire.logprobs_to_wire(t.logprobs) for t in firsts if t.logprobs is not None],
        )
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


def _tell(span: Span, since: float, timings: SequenceTimings) -> None:
    """The prompt was taken on at ``since``, and its first token has just been drawn."""
    computed = {
        "baton.queue_s": timings.queued_s,
        "baton.compute_s": timings.prefill_s,
        "baton.cached_tokens": timings.cached_tokens,
    }
    span.past("prefill compute", since + timings.queued_s, time.monotonic(), computed)
    span.event("first token")
