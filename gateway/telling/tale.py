"""The course of one request as it happens, heard by whoever wants to know."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.errors import BatonError, ClientGone, InternalError
from baton.generation import FinishReason, Progress, Timings
from gateway.attempt import Finished
from gateway.placement import Place
from gateway.requests import ValidRequest
from gateway.telling.gaps import Arrivals

#: How an attempt ends of which the gateway wanted no more.
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Placing:
    """An attempt begins. All times are seconds of ``time.monotonic``."""

    attempt: int
    choices: Sequence[int]  #: that begin with it
    place: Place
    policy: str
    tokens: int  #: prompt and generated so far: whose KV is needed
    since: float  #: it waited for a place since then
    decided: float  #: seconds that it took to choose one
    at: float


@dataclass(frozen=True, slots=True)
class Leaving:
    """An attempt at one choice is over."""

    attempt: int
    choice: int
    how: Finished | BatonError | None  #: None: the gateway wanted no more of it
    at: float

    @property
    def reason(self) -> str:
        match self.how:
            case None:
                return CANCELLED
            case BatonError() as error:
                return error.code
            case finished:
                return finished.reason.value

    @property
    def timings(self) -> Timings | None:
        """What its worker measured."""
        return self.how.timings if isinstance(self.how, Finished) else None


@dataclass(frozen=True, slots=True)
class Ending:
    """A request is over."""

    status: int  #: HTTP, of the error event in mid-stream
    reason: str  #: of its first choice: why generation ended; else the error's code
    error: BatonError | None
    at: float


class Hearer(Protocol):
    """Hears of one request. Called on the event loop; returns at once, and raises nothing."""

    #: Whether workers are to tell how far they are, and when tokens came is to be noted.
    curious: bool

    def queued(self, at: float) -> None:
        """It was taken on."""

    def placed(self, placing: Placing) -> None: ...

    def progressed(self, attempt: int, progress: Progress, at: float) -> None: ...

    def begun(self, choice: int, attempt: int, at: float) -> None:
        """The first tokens of a choice are here. Of those that follow nobody is told: what there
        is to know of them stands in the tale."""

    def left(self, leaving: Leaving) -> None: ...

    def ended(self, ending: Ending) -> None:
        """It is over."""


class Book(Protocol):
    """Knows which requests are open."""

    def opened(self, tale: Tale) -> None: ...

    def closed(self, tale: Tale) -> None:
        """Also of one that was never opened."""


class Tale:
    """What there is to say of a request, whether or not somebody listens, and who does."""

    def __init__(
        self,
        request: ValidRequest,
        arrived: float | None = None,
        *,
        book: Book | None = None,
        policy: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``book``: where it stands as long as it is open."""
        self.request = request
        self.arrived = clock() if arrived is None else arrived
        self.traceparent = request.traceparent  #: that its next attempt gets
        #: Generated of each choice, what its client had before included.
        self.tokens = dict.fromkeys(request.choices, len(request.generated_ids))
        #: When they came, by choice; as long as somebody is curious.
        self.arrivals: defaultdict[int, Arrivals] = defaultdict(Arrivals)
        self.first_at: dict[int, float] = {}  #: of each choice, its first token
        self.attempts = 0
        self.latest: dict[int, int] = {}  #: attempt at each choice
        self.place: Place | None = None  #: of the latest attempt
        self.cached_tokens: int | None = None  #: of the prompt, once a worker has said so
        self._reasons: dict[int, str] = {}  # of each choice: why its latest attempt ended
        self._error: BatonError | None = None
        self._waits_since = self.arrived
        self._hearers: tuple[Hearer, ...] = ()
        self._curious = False
        self._book = book
        self._policy = policy
        self._clock = clock

    def hear(self, hearer: Hearer) -> None:
        """From now on."""
        self._heard_by(*self._hearers, hearer)

    def leave(self, hearer: Hearer) -> None:
        """It does not hear any more."""
        self._heard_by(*(other for other in self._hearers if other is not hearer))
        if not self._curious:
            self.arrivals.clear()  # the next that comes would go on with a gap of all that time

    def _heard_by(self, *hearers: Hearer) -> None:
        self._hearers = hearers
        self._curious = any(hearer.curious for hearer in hearers)

    @property
    def first_token_at(self) -> float | None:
        """Of any choice."""
        return next(iter(self.first_at.values()), None)

    def queued(self) -> None:
        """It was taken on."""
        if self._book is not None:
            self._book.opened(self)
        for hearer in self._hearers:
            hearer.queued(self._clock())

    def placed(
        self, attempt: int, choices: Sequence[int], place: Place, tokens: int, began: float
    ) -> str:
        """An attempt is about to be submitted; to choose its place was begun at ``began``.

        Returns the trace context that goes with it.
        """
        self.attempts = max(self.attempts, attempt + 1)
        self.latest.update(dict.fromkeys(choices, attempt))
        self.place = place
        if self._hearers:
            now = self._clock()
            placing = Placing(
                attempt, choices, place, self._policy, tokens, self._waits_since, now - began, now
            )
            for hearer in self._hearers:
                hearer.placed(placing)
        return self.traceparent

    def heed(self, attempt: int) -> Callable[[Progress], None] | None:
        """Whom to tell how far an attempt is; None where nobody wants to hear it."""
        if not self._curious:
            return None
        return lambda progress: self._progressed(attempt, progress)

    def received(self, choice: int, attempt: int, count: int) -> None:
        """So many tokens more of a choice are here."""
        self.tokens[choice] += count
        if choice not in self.first_at:
            self.first_at[choice] = now = self._clock()
            for hearer in self._hearers:
                hearer.begun(choice, attempt, now)
        if self._curious:
            self.arrivals[choice].note(self._clock())

    def left(self, choice: int, attempt: int, how: Finished | BatonError | None) -> None:
        """An attempt at a choice is over."""
        now = self._clock()
        leaving = Leaving(attempt, choice, how, now)
        self._reasons[choice] = leaving.reason
        self._waits_since = now
        for hearer in self._hearers:
            hearer.left(leaving)

    def failed(self, error: BatonError) -> None:
        """It can go on nowhere."""
        self._error = error

    def ended(self, status: int) -> None:
        """It is over, and its answer came to ``status``. Nothing more will be told."""
        if self._book is not None:
            self._book.closed(self)
        ending = Ending(status, self._reason(status), self._error, self._clock())
        hearers = self._hearers
        self._heard_by()
        for hearer in hearers:
            hearer.ended(ending)

    def _reason(self, status: int) -> str:
        """Why it ended, in a word. Of whom the gateway wanted no more, though nothing went wrong,
        a stop string was complete."""
        if self._error is not None:
            return self._error.code
        if status == ClientGone.http_status:
            return ClientGone.code
        if status >= InternalError.http_status:
            return InternalError.code
        reason = self._reasons.get(self.request.choices[0], CANCELLED)
        return FinishReason.STOP.value if reason == CANCELLED else reason

    def _progressed(self, attempt: int, progress: Progress) -> None:
        now = self._clock()
        for hearer in self._hearers:
            hearer.progressed(attempt, progress, now)
