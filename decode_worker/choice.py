"""One choice of an attempt, between the engine that generates it and the session that tells."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from baton import wire
from baton.errors import BatonError
from baton.generation import AttemptKey, FinishReason, Timings, TokenLogprobs
from baton.v1 import decode_pb2
from decode_worker.outbox import Outbox
from model.engine.events import SequenceTimings, TokenSampled
from model.worker.sequences import LiveSequence

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended by itself."""

    reason: FinishReason
    timings: Timings


#: The phases of a choice, given what its worker's engine measured.
Phases = Callable[[SequenceTimings], Timings]


class Choice:
    """Says every token and, once, the end. Cancelled, it says nothing more.

    The attempt owns it: other choices of the attempt go on when one ends.
    """

    def __init__(self, key: AttemptKey, outbox: Outbox, protocol: int) -> None:
        """``protocol``: of the gateway that hears of it."""
        self.key = key
        self.over = False  #: its end was said, or nobody wants to hear of it
        self._begun = False
        self._outbox = outbox
        self._protocol = protocol
        self._sequence: LiveSequence | None = None

    @property
    def sequence(self) -> LiveSequence:
        """What the engine generates for it."""
        assert self._sequence is not None, "a choice is joined to its sequence first"
        return self._sequence

    def join(self, sequence: LiveSequence) -> None:
        """``sequence`` is its own from the first token on."""
        self._sequence = sequence
        sequence.on_token = self._sampled
        if self.over:
            sequence.cancel()

    def first_token(
        self, index: int, token_id: int, cached_tokens: int, logprobs: TokenLogprobs | None
    ) -> None:
        """Its first token was drawn where the prompt was computed, all but ``cached_tokens``."""
        self._begun = True
        self._outbox.token(self.key, index, token_id, cached_tokens, logprobs)

    def end(self, outcome: Finished | BatonError) -> None:
        """It is over, unless it was before."""
        if not self.over:
            self.over = True
            self._outbox.ended(_ended(self.key, outcome, self._protocol))

    def cancel(self) -> None:
        """Nothing of it is said from here on, and nothing of it stays; idempotent."""
        self.over = True
        self._outbox.forget(self.key)
        if self._sequence is not None:
            self._sequence.cancel()

    def goes_on(self, phases: Phases) -> Future[TokenSampled]:
        """It generates by itself now, and says how it ends. Returns when, for who waits."""
        end = self.sequence.end
        end.add_done_callback(lambda done: self._ended(done, phases))
        return end

    def _sampled(self, event: TokenSampled) -> None:
        if self._begun or event.timings is None:
            self._outbox.token(self.key, event.index, event.token_id, None, event.logprobs)
        else:
            cached = event.timings.cached_tokens
            self.first_token(event.index, event.token_id, cached, event.logprobs)

    def _ended(self, end: Future[TokenSampled], phases: Phases) -> None:
        if end.cancelled():
            return
        error = end.exception()
        if error is None:
            last = end.result()
            assert last.finish_reason is not None and last.timings is not None, "it is the last"
            self.end(Finished(last.finish_reason, phases(last.timings)))
        elif isinstance(error, BatonError):
            log.info(
                "choice ended early",
                choice=self.key.choice_index,
                code=error.code,
                reason=error.message,
            )
            self.end(error)


def _ended(key: AttemptKey, outcome: Finished | BatonError, protocol: int) -> decode_pb2.Ended:
    message = decode_pb2.Ended(
        request_id=key.request_id, attempt=key.attempt, choice_index=key.choice_index
    )
    if isinstance(outcome, Finished):
        message.finish_reason = wire.finish_to_wire(outcome.reason)
        message.timings.CopyFrom(wire.timings_to_wire(outcome.timings))
    else:
        message.error.CopyFrom(wire.error_to_wire(outcome, protocol))
    return message
