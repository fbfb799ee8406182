"""From the waiting room to the workers: a request is placed and submitted in one go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from baton.errors import DeadlineOutOfReach
from gateway.again import Again
from gateway.booking import Booking
from gateway.course import Course, Run
from gateway.metrics import Metrics
from gateway.placement import Place, Placement
from gateway.registry import Registry
from gateway.session import Sessions
from gateway.waiting import WaitingRoom


class Placing:
    """Finds a place for those whose turn it is."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        placement: Placement,
        waiting: WaitingRoom,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._placement = placement
        self._waiting = waiting
        self._metrics = metrics
        self._again = Again(asyncio.get_running_loop().call_later, waiting.changed)

    async def place(self, courses: Sequence[Course]) -> list[Run]:
        """Wait for their turn and for room, then begin an attempt at each. Raises NoWorker,
        DeadlineOutOfReach."""
        first = courses[0]
        return await self._waiting.take_turn(first.turn, first.tokens, lambda: self._start(courses))

    def try_again_soon(self, place: Place) -> None:
        """One that was full, whatever it reports."""
        self._again.soon(place)

    def _start(self, courses: Sequence[Course]) -> list[Run] | None:
        """Place and submit in one go, so that the next in line sees the room that is left."""
        first, *others = courses
        need = first.need(len(courses))
        began = time.monotonic()
        place = self._placement.choose(self._registry.roster, need)
        if place is None:
            return None
        if len(courses) == len(first.request.choices):  # one that has parted from others goes on
            self._require_time(first, place)
        first.give_up_room()
        if not first.attempts:
            self._metrics.queued.observe(first.patience.elapsed)
        tale, attempt = first.tale, first.attempts
        choices = [course.choice for course in courses]
        traceparent = tale.placed(attempt, choices, place, need.tokens, began)
        generation = first.next_generation(others, traceparent)
        attempts = self._sessions.to(place.decode).submit(
            generation, place.prefill, tale.heed(attempt)
        )
        now = asyncio.get_running_loop().time()
        cached = place.cached
        booking = Booking(place.decode, place.prefill, need.tokens, now, len(courses), cached)
        runs = [Run(attempt, place, booking) for attempt in attempts]
        for course, run in zip(courses, runs, strict=True):
            course.started(run)
        return runs

    def _require_time(self, course: Course, place: Place) -> None:
        """Raise DeadlineOutOfReach when others wait and this one would have its prompt computed for
        nothing. Whoever is alone is tried: its prompt may be cached."""
        if course.generated or len(self._waiting) < 2:
            return
        worker, missing = place.prefill or place.decode, course.tokens - place.cached
        seconds = worker.begins_in + missing * worker.report.load.prefill_token
        if seconds > course.patience.left:
            raise DeadlineOutOfReach(
                f"the first token would take about {seconds:.3g} s more, but after "
                f"{course.patience.elapsed:.3g} s of waiting {course.patience.left:.3g} s are left",
                retry_after=seconds,
            )
