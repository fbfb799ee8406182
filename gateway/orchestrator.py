"""A request from admission to its last token, over as many attempts as it takes.

The one recovery path: whatever ends an attempt early in a way that another could mend (prefill
or decode worker lost, preempted, draining, full) leads back to ``_restart``, which places the
request again with the tokens received so far.

The choices of a request begin as one: one place, one prompt computed. With their first tokens
they part: each goes on, ends and is placed again by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import structlog
import tenacity

from baton import tasks
from baton.errors import (
    BatonError,
    CapacityError,
    InternalError,
    NoWorker,
    WorkerFull,
    from_code,
)
from baton.generation import FinishReason, TokenLogprobs
from gateway.admission import Admission
from gateway.course import Course, Run
from gateway.explanation import Trail
from gateway.merge import merge
from gateway.metrics import Metrics
from gateway.pace import Pace
from gateway.patience import Patience
from gateway.placing import Placing
from gateway.presence import Presence
from gateway.registry import Registry
from gateway.requests import ValidRequest
from gateway.telling.tale import Tale
from gateway.waiting import WaitingRoom

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How fast and how long a lost request is placed again, in seconds."""

    initial: float  #: longest pause before the second try; doubles each time
    longest: float  #: longest pause of all
    budget: float  #: without a token before giving up


@dataclass(slots=True)  # not frozen: there is one per token, and that takes 1 us to make
class Delta:
    """Tokens of one choice, in order and each exactly once; the last delta says how generation
    ended."""

    token_ids: list[int]
    finish: FinishReason | None = None
    cached_tokens: int | None = None  #: see Course.cached_tokens
    workers: str = ""  #: see Course.workers
    logprobs: list[TokenLogprobs] = field(default_factory=list)  #: of each token, or of none


Deltas: TypeAlias = AsyncGenerator[Delta, None]
#: What is made of the deltas of a choice, by its index. It closes them when it has enough, which
#: cancels that choice.
Render: TypeAlias = Callable[[int, Deltas], AsyncGenerator[T, None]]


class Orchestrator:
    """Admits, places, fences, recovers and times every request."""

    def __init__(
        self,
        registry: Registry,
        placing: Placing,
        waiting: WaitingRoom,
        admission: Admission,
        presence: Presence,
        retry: RetryPolicy,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._placing = placing
        self._waiting = waiting
        self._admission = admission
        self._presence = presence
        self._retry = retry
        self._metrics = metrics
        self._pace = Pace()

    async def generate(
        self,
        request: ValidRequest,
        render: Render[T],
        trail: Trail | None = None,
        tale: Tale | None = None,
    ) -> AsyncGenerator[T, None]:
        """Yield what ``render`` makes of each choice, in which every token is seen once. Closing
        the iterator cancels the request down the tree.

        ``trail`` is told where each attempt was placed, and why; ``tale`` what happens to it.

        Raises QueueFull, DeadlineOutOfReach, RateLimited or NoWorker before anything is placed;
        DeadlineExceeded naming the phase; an error that no other attempt could mend, as it came;
        one that it could, when the retry budget is spent.
        """
        tale = tale or Tale(request)
        courses = [
            Course(
                request,
                choice,
                self._waiting.arrive(request.priority),
                Patience(request.deadlines),
                tale,
            )
            for choice in request.choices
        ]
        courses[0].trail = trail
        if request.resume is not None and (workers := request.resume.workers):
            self._require_family(courses, workers)
        with (
            self._metrics.open_streams.track_inprogress(),
            self._admission.admit(request, courses[0].turn) as ticket,
        ):
            try:
                tale.queued()
                begun = await self._restart(courses)
                ticket.give_back()
                rendered = [
                    render(course.choice, self._follow(course, tokens))
                    for course, tokens in zip(courses, begun, strict=True)
                ]
                async with aclosing(merge(rendered)) as items:
                    async for item in items:
                        yield item
                self._metrics.request_latency.observe(courses[0].patience.elapsed)
            except BatonError as error:
                tale.failed(error)
                raise
            finally:
                for course in courses:
                    self._leave(course)
                    course.give_up_room()

    def _require_family(self, courses: Sequence[Course], workers: str) -> None:
        """An answer that was begun elsewhere goes on in its class: only there is that exact."""
        model = courses[0].request.model
        family = self._registry.roster.family(model, workers)
        if family is None:
            raise NoWorker(f"no worker of family {workers!r} serves {model!r} now")
        for course in courses:
            course.family = family

    async def _follow(self, course: Course, tokens: list[int]) -> Deltas:
        """One choice from its first tokens on, to its end."""
        finish: FinishReason | None = None
        while finish is None:
            try:
                if course.run is None:
                    [tokens] = await self._restart([course])
                async with aclosing(self._flow(course, course.run, tokens)) as deltas:
                    async for delta in deltas:
                        finish = delta.finish
                        yield delta
            finally:
                self._leave(course)
            if finish is None and (finish := course.complete()) is not None:
                yield Delta([], finish, course.cached_tokens, course.workers)

    async def _flow(self, course: Course, run: Run | None, tokens: list[int]) -> Deltas:
        """The rest of an attempt that has given its first tokens.

        Ends without a finish when the attempt is lost and another could go on from here.
        """
        assert run is not None, "an attempt that gave tokens is there"
        attempt = run.attempt
        try:
            with course.patience.watching(lambda: not attempt.pending, attempt.give_up):
                while (finished := attempt.finished) is None:
                    logprobs = course.take_logprobs()
                    yield Delta(tokens, None, course.cached_tokens, course.workers, logprobs)
                    tokens = await attempt.take()
                    self._received(course, tokens)
                    self._handed_over(run)
            cached = course.cached_tokens
            if cached is None:  # of a worker of protocol 1 this is all that is known
                timings = finished.timings
                cached = max(timings.prefill_cached_tokens, timings.decode_cached_tokens)
            logprobs = course.take_logprobs()
            yield Delta(tokens, finished.reason, cached, course.workers, logprobs)
        except BatonError as error:
            if not _mendable(error):
                raise
            self._lost(course, error)

    async def _restart(self, courses: Sequence[Course]) -> list[list[int]]:
        """Try until an attempt gives tokens: that is progress, and resets the budget.

        ``courses`` stand at the same token and are placed as one. Returns the tokens of each; one
        without a run has none and is to be placed by itself.
        """
        first, began = courses[0], asyncio.get_running_loop().time()
        async with first.patience:
            try:
                return await self._try(courses)
            except BatonError as error:
                if not self._again(first, error):
                    raise
                return await self._retry_after(error, courses, began)

    async def _retry_after(
        self, error: BatonError, courses: Sequence[Course], began: float
    ) -> list[list[int]]:
        """Try again, as the first try ended with ``error``. Most requests never come here, and
        what it takes to retry costs as much as to place one."""
        first, clock = courses[0], asyncio.get_running_loop().time
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: self._again(first, error)),
            wait=tenacity.wait_random_exponential(self._retry.initial, self._retry.longest),
            stop=lambda _: clock() - began >= self._retry.budget,
            sleep=self._pause,
        )
        failed = [error]

        async def attempt() -> list[list[int]]:
            if failed:
                raise failed.pop()
            return await self._try(courses)

        try:
            return await retrying(attempt)
        except tenacity.RetryError as spent:
            raise self._given_up(first, spent.last_attempt.exception()) from spent

    @asynccontextmanager
    async def _in_step(self, course: Course) -> AsyncIterator[None]:
        """A replay's body waits until few enough others are on their way to where it goes."""
        if course.last is None:
            yield
            return
        roster, last = self._registry.roster, course.last.decode.instance_id
        alive = roster.instance(last) is not None and last not in course.avoid
        to, workers = (last, 1) if alive else ("", roster.decodes)
        async with self._pace.replay(to, course.turn, workers):
            yield

    async def _try(self, courses: Sequence[Course]) -> list[list[int]]:
        async with self._in_step(courses[0]):
            return await self._begin(courses)

    async def _begin(self, courses: Sequence[Course]) -> list[list[int]]:
        """One attempt up to its first tokens; a full worker sends it back to wait for room."""
        while True:
            runs = await self._wait_for_place(courses)
            taken = [await _take(run) for run in runs]
            for course, outcome in zip(courses, taken, strict=True):
                if isinstance(outcome, BatonError):
                    self._leave(course)
                    if _mendable(outcome):
                        self._lost(course, outcome)
                else:
                    self._received(course, outcome)
            errors = [outcome for outcome in taken if isinstance(outcome, BatonError)]
            errors.sort(key=_mendable)
            if len(errors) < len(courses) and all(map(_mendable, errors)):
                runs[0].booking.started()
                self._waiting.changed()
                return [[] if isinstance(tokens, BatonError) else tokens for tokens in taken]
            if not isinstance(errors[0], WorkerFull):
                raise errors[0]

    async def _wait_for_place(self, courses: Sequence[Course]) -> list[Run]:
        """Without a worker, a new request is refused at once; one under way waits for another
        worker until its budget is spent."""
        first = courses[0]
        while True:
            try:
                async with tasks.within("queue", first.request.deadlines.queue):
                    return await self._placing.place(courses)
            except NoWorker:
                left = self._retry.budget - first.patience.waited
                if first.attempts == 0 or left <= 0:
                    raise
                await self._pause(left)

    async def _pause(self, seconds: float) -> None:
        """So long, or until workers have come or gone: there may be a place now."""
        # Not wait_for: before Python 3.12 it forgets a cancellation that meets the roster's change,
        # and whoever waits here would go on without its client.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._registry.another_roster()

    def _received(self, course: Course, tokens: list[int]) -> None:
        if not tokens:
            return
        first = not course.patience.started
        course.received(tokens)
        course.tale.received(course.choice, course.attempts - 1, len(tokens))
        waited = course.patience.progress()
        if not first:
            self._metrics.tokens.more(len(tokens), waited)
            return
        self._metrics.tokens.first(len(tokens))
        if course.choice == course.request.choices[0]:
            self._metrics.time_to_first_token.observe(waited)
            self._metrics.prompt_tokens.inc(len(course.request.prompt_ids))
            self._metrics.prefix_hits.inc(course.cached_tokens or 0)

    def _handed_over(self, run: Run) -> None:
        if run.booking.handed_over():
            self._waiting.changed()

    def _lost(self, course: Course, error: BatonError) -> None:
        course.learn(error, asyncio.get_running_loop().time())
        if isinstance(error, WorkerFull) and course.last is not None:
            self._placing.try_again_soon(course.last)
        if not isinstance(error, CapacityError) and course.complete() is None:
            course.keep_room()
        self._metrics.migrations.labels(reason=error.code).inc()
        log.info(
            "attempt lost",
            request_id=course.request.request_id,
            choice=course.choice,
            attempt=course.attempts - 1,
            reason=error.code,
            detail=error.message,
            generated=len(course.generated),
        )

    def _leave(self, course: Course) -> None:
        """Cancel what still runs, and let the next in line look for the room. Idempotent."""
        run, course.run = course.run, None
        if run is not None:
            course.tale.left(course.choice, course.attempts - 1, run.attempt.ended)
            run.attempt.cancel()
            run.booking.ended()
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


async def _take(run: Run) -> list[int] | BatonError:
    """An attempt's first tokens, or what ended it before it had any."""
    try:
        return await run.attempt.take()
    except BatonError as error:
        return error


def _mendable(error: BaseException) -> bool:
    return isinstance(error, BatonError) and error.retryable
