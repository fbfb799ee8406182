"""A request from admission to its last token, over as many attempts as it takes.

The one recovery path: whatever ends an attempt early in a way that another could mend (prefill
or decode worker lost, preempted, draining, full) leads back to ``_restart``, which places the
request again with the tokens received so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog
import tenacity

from baton import tasks
from baton.errors import (
    BatonError,
    DeadlineOutOfReach,
    InternalError,
    NoWorker,
    WorkerFull,
    from_code,
)
from baton.generation import FinishReason, Timings
from gateway.admission import Admission
from gateway.course import Course, Run
from gateway.fleet import Booking
from gateway.metrics import Metrics
from gateway.patience import Patience
from gateway.placement import Place, Placement
from gateway.presence import Presence
from gateway.registry import Registry
from gateway.requests import ValidRequest
from gateway.session import Sessions
from gateway.waiting import WaitingRoom

log = structlog.get_logger(__name__)

#: Seconds after which a worker that was full is tried with one request, whatever it reports.
_MOMENT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How fast and how long a lost request is placed again, in seconds."""

    initial: float  #: longest pause before the second try; doubles each time
    longest: float  #: longest pause of all
    budget: float  #: without a token before giving up


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens, in order and each exactly once; the last delta says how generation ended."""

    token_ids: list[int]
    finish: FinishReason | None = None
    timings: Timings | None = None


class Orchestrator:
    """Admits, places, fences, recovers and times every request."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        placement: Placement,
        waiting: WaitingRoom,
        admission: Admission,
        presence: Presence,
        retry: RetryPolicy,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._placement = placement
        self._waiting = waiting
        self._admission = admission
        self._presence = presence
        self._retry = retry
        self._metrics = metrics
        #: Pairs of workers that were full and are soon tried again, whatever they report.
        self._trying_again: set[frozenset[str]] = set()

    async def generate(self, request: ValidRequest) -> AsyncGenerator[Delta, None]:
        """Yield every token once. Closing the iterator cancels the request down the tree.

        Raises QueueFull, DeadlineOutOfReach, RateLimited or NoWorker before anything is placed;
        DeadlineExceeded naming the phase; an error that no other attempt could mend, as it came;
        one that it could, when the retry budget is spent.
        """
        turn = self._waiting.arrive(request.priority)
        course = Course(request, turn, Patience(request.deadlines))
        finish: FinishReason | None = None
        with (
            self._metrics.open_streams.track_inprogress(),
            self._admission.admit(request, turn) as ticket,
        ):
            while finish is None:
                try:
                    run, tokens = await self._restart(course)
                    ticket.give_back()
                    async with aclosing(self._flow(course, run, tokens)) as deltas:
                        async for delta in deltas:
                            finish = delta.finish
                            yield delta
                finally:
                    self._leave(course)
                if finish is None and (finish := course.complete()) is not None:
                    yield Delta([], finish)

    async def _flow(
        self, course: Course, run: Run, tokens: list[int]
    ) -> AsyncGenerator[Delta, None]:
        """The rest of an attempt that has given its first tokens.

        Ends without a finish when the attempt is lost and another could go on from here.
        """
        try:
            while (finished := run.attempt.finished) is None:
                yield Delta(tokens)
                async with course.patience:
                    tokens = await run.attempt.take()
                self._received(course, tokens)
                self._handed_over(run)
            yield Delta(tokens, finished.reason, finished.timings)
        except BatonError as error:
            if not _mendable(error):
                raise
            self._lost(course, error)

    async def _restart(self, course: Course) -> tuple[Run, list[int]]:
        """Try until an attempt gives tokens: that is progress, and resets the budget."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: self._again(course, error)),
            wait=tenacity.wait_random_exponential(self._retry.initial, self._retry.longest),
            stop=tenacity.stop_after_delay(self._retry.budget),
        )
        try:
            async with course.patience:
                return await retrying(self._try, course)
        except tenacity.RetryError as spent:
            raise self._given_up(course, spent.last_attempt.exception()) from spent

    async def _try(self, course: Course) -> tuple[Run, list[int]]:
        """One attempt up to its first tokens; a full worker sends it back to wait for room."""
        while True:
            run = await self._wait_for_place(course)
            try:
                tokens = await run.attempt.take()
            except BatonError as error:
                self._leave(course)
                if _mendable(error):
                    self._lost(course, error)
                if not isinstance(error, WorkerFull):
                    raise
            else:
                self._received(course, tokens)
                run.booking.started(asyncio.get_running_loop().time())
                self._waiting.changed()
                return run, tokens

    async def _wait_for_place(self, course: Course) -> Run:
        async with tasks.within("queue", course.request.deadlines.queue):
            return await self._waiting.take_turn(
                course.turn, course.need.tokens, lambda: self._start(course)
            )

    def _start(self, course: Course) -> Run | None:
        """Place and submit in one go, so that the next in line sees the room that is left."""
        need = course.need
        place = self._placement.choose(self._registry.workers, need)
        if place is None:
            return None
        self._require_time(course, place)
        attempt = self._sessions.to(place.decode).submit(course.next_generation(), place.prefill)
        now = asyncio.get_running_loop().time()
        course.started(Run(attempt, place, Booking(place.decode, place.prefill, need.tokens, now)))
        return course.run

    def _require_time(self, course: Course, place: Place) -> None:
        """Raise DeadlineOutOfReach when others wait and this one would have its prompt computed for
        nothing. Whoever is alone is tried: its prompt may be cached."""
        if course.generated or len(self._waiting) < 2:
            return
        worker = place.prefill or place.decode
        seconds = worker.begins_in + course.need.tokens * worker.report.load.prefill_token
        if seconds > course.patience.left:
            raise DeadlineOutOfReach(
                f"the first token would take about {seconds:.3g} s more, but after "
                f"{course.patience.elapsed:.3g} s of waiting {course.patience.left:.3g} s are left",
                retry_after=seconds,
            )

    def _received(self, course: Course, tokens: list[int]) -> None:
        if not tokens:
            return
        first = not course.generated
        course.received(tokens)
        waited = course.patience.progress()
        if first:
            self._metrics.time_to_first_token.observe(waited)
        else:
            self._metrics.inter_token_latency.observe(waited)

    def _handed_over(self, run: Run) -> None:
        if run.booking.handed_over(asyncio.get_running_loop().time()):
            self._waiting.changed()

    def _lost(self, course: Course, error: BatonError) -> None:
        course.learn(error)
        if isinstance(error, WorkerFull) and course.last is not None:
            self._try_again_soon(course.last)
        self._metrics.migrations.labels(reason=error.code).inc()
        log.info(
            "attempt lost",
            request_id=course.request.request_id,
            attempt=course.attempts - 1,
            reason=error.code,
            detail=error.message,
            generated=len(course.generated),
        )

    def _try_again_soon(self, place: Place) -> None:
        """Once for all that are refused meanwhile."""
        workers = [place.decode] if place.prefill is None else [place.decode, place.prefill]
        names = frozenset(worker.instance_id for worker in workers)
        if names in self._trying_again:
            return

        def try_again() -> None:
            self._trying_again.discard(names)
            for worker in workers:
                worker.try_again()
            self._waiting.changed()

        self._trying_again.add(names)
        asyncio.get_running_loop().call_later(_MOMENT, try_again)

    def _leave(self, course: Course) -> None:
        """Cancel what still runs, and let the next in line look for the room. Idempotent."""
        run, course.run = course.run, None
        if run is not None:
            run.attempt.cancel()
            run.booking.ended(asyncio.get_running_loop().time())
            self._waiting.changed()

    def _again(self, course: Course, error: BaseException) -> bool:
        """Without a worker, a request under way hopes for a while, a new one only if there was one
        a moment ago."""
        hopeless = isinstance(error, NoWorker) and not course.attempts
        return _mendable(error) and (not hopeless or self._presence.lately)

    def _given_up(self, course: Course, last: BaseException | None) -> BatonError:
        if not isinstance(last, BatonError):
            return InternalError(f"retries ended with {last!r}")
        return from_code(
            last.code,
            f"gave up after {course.attempts} attempts and {self._retry.budget:g} s without a "
            f"token; the last ended with: {last.message}",
        )


def _mendable(error: BaseException) -> bool:
    return isinstance(error, BatonError) and error.retryable
