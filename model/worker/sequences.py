"""The engine as the event loop sees it: sequences opened and closed, their events delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from baton.errors import BatonError, Preempted
from model.engine.engine import Engine
from model.engine.events import (
    Event,
    LayerReady,
    PrefixShared,
    SequenceFailed,
    SequencePreempted,
    TokenSampled,
)
from model.engine.runner import Runner
from model.engine.sequence import Reservation, SequenceRequest
from model.engine.settings import SchedulerSettings

log = structlog.get_logger(__name__)

#: (position among all generated ids, token id), called as each token is sampled.
OnToken = Callable[[int, int], None]
#: (layer, end position, when), called as each layer of each chunk is computed.
OnLayer = Callable[[int, int, float], None]
#: (end position, when), called as all layers were computed by another sequence.
OnShared = Callable[[int, float], None]


def _ignore(*_: object) -> None:
    """For a listener that nobody asked for."""


class LiveSequence:
    """A sequence of the engine, owned by whoever opened it.

    ``first`` is done with the first token sampled here; ``end`` with the token that finished the
    generation. Both raise what ended the sequence early. The owner sets ``on_token``, ``on_layer``
    and ``on_shared`` before it next awaits, and misses nothing.
    """

    def __init__(self, reservation: Reservation) -> None:
        loop = asyncio.get_running_loop()
        self.reservation = reservation
        self.on_token: OnToken = _ignore
        self.on_layer: OnLayer = _ignore
        self.on_shared: OnShared = _ignore
        self.first: asyncio.Future[TokenSampled] = loop.create_future()
        self.end: asyncio.Future[TokenSampled] = loop.create_future()

    @property
    def seq_id(self) -> int:
        return self.reservation.seq_id

    def take(self, event: Event) -> None:
        """Called on the loop with every event of this sequence, in order."""
        match event:
            case TokenSampled():
                self.on_token(event.index, event.token_id)
                if not self.first.done():
                    self.first.set_result(event)
                if event.finish_reason is not None and not self.end.done():
                    self.end.set_result(event)
            case LayerReady():
                self.on_layer(event.layer, event.end, event.at)
            case PrefixShared():
                self.on_shared(event.end, event.at)
            case SequenceFailed():
                self._fail(event.error)
            case SequencePreempted():
                self._fail(Preempted("the sequence gave its KV blocks to an older one"))

    def settle(self) -> None:
        """Nobody waits any more: no future stays pending, no failure goes unretrieved."""
        for future in (self.first, self.end):
            if not future.cancel() and not future.cancelled():
                future.exception()

    def _fail(self, error: BatonError) -> None:
        if error.__cause__ is not None:
            log.error("sequence failed", error=error.message, exc_info=error.__cause__)
        for future in (self.first, self.end):
            if not future.done():
                future.set_exception(error)


class Sequences:
    """Builds the engine and carries its events to the loop, with one wake-up per step.

    The caller starts and stops ``engine``, and stops it before the loop ends.
    """

    def __init__(self, runner: Runner, settings: SchedulerSettings) -> None:
        self._loop = asyncio.get_running_loop()
        self._live: dict[int, LiveSequence] = {}
        self.engine = Engine(runner, settings, self._emit)

    @contextmanager
    def open(self, request: SequenceRequest) -> Iterator[LiveSequence]:
        """Reserve blocks for ``request``; however the body ends, they are given up.

        Raises ContextLengthExceeded, WorkerFull or Draining.
        """
        reservation = self.engine.add(request)
        # No await since ``add``: its first event cannot have been delivered yet.
        sequence = LiveSequence(reservation)
        self._live[reservation.seq_id] = sequence
        try:
            yield sequence
        finally:
            del self._live[reservation.seq_id]
            self.engine.cancel(reservation.seq_id)
            sequence.settle()

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
