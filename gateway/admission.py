"""How much this gateway takes on: requests that have no first token yet, bounded in tokens, in
number, and by what can be served in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from prometheus_client import Gauge

from baton.deadlines import Deadlines
from baton.errors import DeadlineOutOfReach, QueueFull
from baton.identity import Role
from gateway.fleet import Worker
from gateway.requests import ValidRequest
from gateway.waiting import Turn, WaitingRoom

#: Of a deadline, what may be ahead of a request. The rest is its own prompt's, how much of which
#: is cached nobody knows yet, and for what was measured to be wrong by.
_SHARE = 0.75

#: Seconds for which a look at all workers is good.
_FRESH = 0.02


@dataclass(frozen=True, slots=True)
class Pace:
    """How busy the fleet is, by the workers' own measure."""

    begin: float = 0.0  #: seconds until some worker begins with a new prompt; 0 where unknown
    rate: float = 0.0  #: prompt tokens computed per second by all together; 0 when unknown


def pace(workers: Iterable[Worker]) -> Pace:
    """Of all workers that compute prompts. One that has not measured yet may be free."""
    begin, rate = math.inf, 0.0
    for worker in workers:
        report = worker.report
        if report.draining or not (Role.PREFILL in report.roles or report.local_prefill):
            continue
        begin = min(begin, worker.begins_in)
        if (token := report.load.prefill_token) > 0:
            rate += 1 / token
    return Pace(begin if math.isfinite(begin) else 0.0, rate)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Of requests without a first token."""

    tokens: int  #: of their prompts together
    requests: int


class Admission:
    """One bounded queue. Whom it refuses learns when to come again, from what is ahead of it."""

    def __init__(
        self,
        limits: QueueLimits,
        waiting: WaitingRoom,
        pace: Callable[[], Pace],
        queued: Gauge,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._waiting = waiting
        self._pace = pace
        self._clock = clock
        self._looked = -math.inf
        self._last = Pace()
        self._tokens = 0
        self._requests = 0
        self._gauge = queued

    @property
    def tokens(self) -> int:
        """Prompt tokens of requests that wait for their first token."""
        return self._tokens

    def admit(self, request: ValidRequest, turn: Turn) -> Ticket:
        """Raises QueueFull, DeadlineOutOfReach or RateLimited, naming what is and what may be.

        An empty queue takes any one request.
        """
        tokens = len(request.prompt_ids) + len(request.generated_ids)
        return self.take(tokens, request.deadlines, turn, request.caller.quota.spend)

    def take(
        self,
        tokens: int,
        deadlines: Deadlines,
        turn: Turn,
        spend: Callable[[int], None] = lambda tokens: None,
    ) -> Ticket:
        """As ``admit`` for what is known of a request; ``spend`` may still refuse its tokens."""
        pace = self._current_pace()
        if self._requests:
            self._require_room(tokens, pace)
        self._require_time(deadlines, turn, pace)
        spend(tokens)
        self._count(1, tokens)
        return Ticket(self, tokens)

    def _current_pace(self) -> Pace:
        now = self._clock()
        if now - self._looked >= _FRESH:
            self._looked, self._last = now, self._pace()
        return self._last

    def _require_room(self, tokens: int, pace: Pace) -> None:
        over = self._tokens + tokens - self._limits.tokens
        rate = self._rate(pace)
        if over > 0:
            raise QueueFull(
                f"the queue holds {self._tokens} prompt tokens; {tokens} more would exceed its "
                f"limit of {self._limits.tokens}",
                retry_after=over / rate if rate else None,
            )
        if self._requests >= self._limits.requests:
            mean = self._tokens / self._requests
            raise QueueFull(
                f"the queue holds {self._requests} requests, which is its limit",
                retry_after=mean / rate if rate else None,
            )

    def _require_time(self, deadlines: Deadlines, turn: Turn, pace: Pace) -> None:
        """Some time passes until there is room, then until a worker gets to it."""
        rate = self._rate(pace)
        room = self._waiting.ahead(turn) / rate if rate else 0.0
        for phase, seconds, allowed in (
            ("queue", room, deadlines.queue),
            ("first_token", room + pace.begin, deadlines.first_token),
            ("total", room + pace.begin, deadlines.total),
        ):
            if (late := seconds - _SHARE * allowed) > 0:
                raise DeadlineOutOfReach(
                    f"about {seconds:.3g} s of work is ahead, which leaves too little of the "
                    f"{allowed:g} s allowed for phase '{phase}'",
                    retry_after=late,
                )

    def _rate(self, pace: Pace) -> float:
        """Prompt tokens per second; 0 when unknown. What was seen while some waited counts for
        more than what the workers hope: it may be decoding that they wait for."""
        return (self._waiting.rate if len(self._waiting) else 0.0) or pace.rate

    def _count(self, requests: int, tokens: int) -> None:
        self._requests += requests
        self._tokens += tokens
        self._gauge.set(self._tokens)


class Ticket:
    """A request's share of the queue; given back once, at its first token or its end."""

    def __init__(self, admission: Admission, tokens: int) -> None:
        self._admission = admission
        self._tokens = tokens
        self._valid = True

    def give_back(self) -> None:
        """Idempotent."""
        if self._valid:
            self._valid = False
            self._admission._count(-1, -self._tokens)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()
