"""What one session has yet to say: tokens coalesced per attempt, however slowly it is read."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from baton import wire
from baton.generation import AttemptKey, Progress, TokenLogprobs
from baton.v1 import common_pb2, decode_pb2

#: Unsent tokens of each attempt that are never too many.
_EACH = 32
#: Seconds that word of how far an attempt is waits for a message to go with: one of its own takes
#: as long to send and to read as the tokens of a whole step.
_RIDE = 0.02


@dataclass(slots=True)
class _Unsent:
    """Consecutive tokens of one attempt that wait for the writer."""

    index: int  #: of the first, among all generated ids
    cached_tokens: int | None  #: of the prompt, if it is the attempt's first
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  #: of each, or of none


class Outbox:
    """Filled without ever waiting (the engine does not wait for a client), taken by one writer.

    What an engine step produced for all attempts goes out as one message. To a reader that lags,
    several steps do. More than ``limit`` unsent tokens, and more than some for each attempt, as
    thousands have as many with a few steps, and ``overflow`` is set: nobody reads.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._tokens: dict[AttemptKey, _Unsent] = {}
        self._ended: list[decode_pb2.Ended] = []
        self._progress: dict[AttemptKey, Progress] = {}  # the newest of each attempt
        self._ride: asyncio.TimerHandle | None = None  # until it goes by itself ...
        self._due = False  # ... as it does now
        self._beats: deque[decode_pb2.SessionEvent] = deque(maxlen=1)  # only the newest matters
        self._news = asyncio.Event()
        self._closed = False
        self.overflow = asyncio.Event()

    def token(
        self,
        key: AttemptKey,
        index: int,
        token_id: int,
        cached_tokens: int | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> None:
        """The attempt's next token. ``cached_tokens``: see TokenDelta, with the first."""
        unsent = self._tokens.get(key)
        if unsent is None:
            unsent = self._tokens[key] = _Unsent(index, cached_tokens)
        unsent.token_ids.append(token_id)
        if logprobs is not None:
            unsent.logprobs.append(logprobs)
        self._count += 1
        self._news.set()
        if self._count > max(self._limit, _EACH * len(self._tokens)):
            self.overflow.set()

    def ended(self, message: decode_pb2.Ended) -> None:
        """The attempt is over; said after its tokens."""
        self._ended.append(message)
        self._news.set()

    def progress(self, progress: Progress) -> None:
        """How far an attempt is; what was said of it before and is not sent yet need not be. It is
        no hurry: it goes with what is sent next, or in a moment."""
        self._progress[progress.key] = progress
        if self._ride is None:
            self._ride = asyncio.get_running_loop().call_later(_RIDE, self._depart)

    def _depart(self) -> None:
        """Nothing came for it to go with, or it went."""
        self._ride = None
        if self._progress:
            self._due = True
            self._news.set()

    def forget(self, key: AttemptKey) -> None:
        """Nobody wants the attempt's tokens any more."""
        self._progress.pop(key, None)
        unsent = self._tokens.pop(key, None)
        if unsent is not None:
            self._count -= len(unsent.token_ids)

    def beat(self, sequence: int) -> None:
        """A sign of life."""
        heartbeat = common_pb2.Heartbeat(sequence=sequence)
        self._beats.append(decode_pb2.SessionEvent(heartbeat=heartbeat))
        self._news.set()

    def close(self) -> None:
        """Nothing more will come: ``take`` returns None once all is taken."""
        self._closed = True
        self._news.set()

    async def take(self) -> decode_pb2.SessionEvent | None:
        """The next message; waits for one. None at the end."""
        while True:
            self._news.clear()
            if self._beats:
                self._news.set()  # there may be more
                return self._beats.popleft()
            if self._tokens or self._ended or (self._due and self._progress):
                return decode_pb2.SessionEvent(step=self._step())
            if self._closed:
                return None
            await self._news.wait()

    def _step(self) -> decode_pb2.StepOutput:
        tokens, self._tokens = self._tokens, {}
        ended, self._ended = self._ended, []
        progress, self._progress = self._progress, {}
        self._count = 0
        self._due = False
        deltas = [
            decode_pb2.TokenDelta(
                request_id=key.request_id,
                attempt=key.attempt,
                choice_index=key.choice_index,
                token_index=unsent.index,
                token_ids=unsent.token_ids,
                cached_tokens=unsent.cached_tokens,
                logprobs=[wire.logprobs_to_wire(told) for told in unsent.logprobs],
            )
            for key, unsent in tokens.items()
        ]
        told = map(wire.progress_to_wire, progress.values())
        return decode_pb2.StepOutput(tokens=deltas, ended=ended, progress=told)
