"""The engine as the event loop sees it: sequences opened and closed, their events delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context

import structlog

from baton.errors import BatonError, Preempted
from model.engine.engine import Engine, OnStep
from model.engine.events import (
    ChunkComputed,
    Event,
    LayerReady,
    PrefixShared,
    SequenceFailed,
    SequencePreempted,
    TokenSampled,
)
from model.engine.masks import MasksAhead
from model.engine.runner import Runner
from model.engine.sequence import Reservation, SequenceRequest
from model.engine.settings import SchedulerSettings

log = structlog.get_logger(__name__)

#: Called as each token is sampled.
OnToken = Callable[[TokenSampled], None]
#: (layer, end position, when), called as each layer of each chunk is computed.
OnLayer = Callable[[int, int, float], None]
#: Called with the end position, as chunks of a prompt are computed that is to be told of.
OnChunk = Callable[[int], None]
#: (end position, when), called as all layers were computed by another sequence.
OnShared = Callable[[int, float], None]


def _ignore(*_: object) -> None:
    """For a listener that nobody asked for."""


class LiveSequence:
    """A sequence of the engine, owned by whoever opened it.

    ``first`` is done with the first token sampled here; ``end`` with the token that finished the
    generation. Both raise what ended the sequence early. The owner sets ``on_token``, ``on_layer``,
    ``on_shared`` and ``on_chunk`` before it next awaits, and misses nothing.

    Of several choices this is the stem: ``first`` is done with the first token of any, ``end``
    only if it ends before they part. ``choices`` are theirs, each with tokens and an end of its
    own; a single one is the sequence itself.
    """

    def __init__(
        self,
        reservation: Reservation,
        seq_id: int,
        stem: LiveSequence | None,
        cancel: Callable[[int], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.reservation = reservation
        self.seq_id = seq_id
        self.choices: list[LiveSequence] = [self]
        self._stem = stem
        self._cancel = cancel
        self.on_token: OnToken = _ignore
        self.on_layer: OnLayer = _ignore
        self.on_shared: OnShared = _ignore
        self.on_chunk: OnChunk = _ignore
        self._opened_in = copy_context()  # so that what is logged of it names its request
        self.first: asyncio.Future[TokenSampled] = loop.create_future()
        self.end: asyncio.Future[TokenSampled] = loop.create_future()

    def take(self, event: Event) -> None:
        """Called on the loop with every event of this sequence, in order."""
        match event:
            case TokenSampled():
                self.on_token(event)
                if not self.first.done():
                    for first in self._firsts:
                        first.set_result(event)
                if event.finish_reason is not None and not self.end.done():
                    self.end.set_result(event)
            case LayerReady():
                self.on_layer(event.layer, event.end, event.at)
            case ChunkComputed():
                self.on_chunk(event.end)
            case PrefixShared():
                self.on_shared(event.end, event.at)
            case SequenceFailed():
                self._fail(event.error)
            case SequencePreempted():
                self._fail(Preempted("the sequence gave its KV blocks to an older one"))

    def cancel(self) -> None:
        """End it, without another word; idempotent. Other choices go on."""
        self._cancel(self.seq_id)
        self.settle()

    def settle(self) -> None:
        """Nobody waits any more: no future stays pending, no failure goes unretrieved."""
        for future in (self.first, self.end):
            if not future.cancel() and not future.cancelled():
                future.exception()

    @property
    def _firsts(self) -> list[asyncio.Future[TokenSampled]]:
        """Who waits for its first token, or for that of any choice."""
        firsts = [self.first] if self._stem is None else [self.first, self._stem.first]
        return [first for first in firsts if not first.done()]

    def _fail(self, error: BatonError) -> None:
        if error.__cause__ is not None:
            self._opened_in.run(
                log.error, "sequence failed", error=error.message, exc_info=error.__cause__
            )
        for future in (*self._firsts, self.end):
            if not future.done():
                future.set_exception(error)


class Sequences:
    """Builds the engine and carries its events to the loop, with one wake-up per step.

    The caller starts and stops ``engine``, and stops it before the loop ends.
    """

    def __init__(self, runner: Runner, settings: SchedulerSettings, on_step: OnStep) -> None:
        self._loop = asyncio.get_running_loop()
        self._live: dict[int, LiveSequence] = {}
        self.engine = Engine(runner, settings, self._emit, on_step=on_step, masks=MasksAhead())

    @contextmanager
    def open(self, request: SequenceRequest) -> Iterator[LiveSequence]:
        """Reserve blocks for ``request``; however the body ends, they are given up.

        Raises ContextLengthExceeded, WorkerFull, Draining, or InvalidRequest for more choices
        than may run at once.
        """
        reservation = self.engine.add(request)
        # No await since ``add``: its first event cannot have been delivered yet.
        sequence = self._listen(reservation, reservation.seq_id)
        if reservation.choices:
            sequence.choices = [
                self._listen(reservation, seq_id, sequence) for seq_id in reservation.choices
            ]
        try:
            yield sequence
        finally:
            for opened in (sequence, *sequence.choices):
                opened.cancel()

    def _listen(
        self, reservation: Reservation, seq_id: int, stem: LiveSequence | None = None
    ) -> LiveSequence:
        live = self._live[seq_id] = LiveSequence(reservation, seq_id, stem, self._cancel)
        return live

    def _cancel(self, seq_id: int) -> None:
        self._live.pop(seq_id, None)
        self.engine.cancel(seq_id)

    @contextmanager
    def hold(self, seq_id: int) -> Iterator[None]:
        """Keep a sequence's blocks from reuse while bytes move, whatever becomes of it.

        Raises Preempted when it has ended.
        """
        hold = self.engine.hold(seq_id)
        try:
            yield
        finally:
            self.engine.unhold(hold)

    def _emit(self, events: Sequence[Event]) -> None:
        """Called on the engine thread."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            sequence = self._live.get(event.seq_id)
            if sequence is not None:  # else it was closed: its last step concerns nobody
                sequence.take(event)
