"""The gateway in virtual time: the real admission, waiting room, placement and booking, and the
orchestrator's one recovery path in the little that a fleet without faults needs of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from prometheus_client import Gauge

from baton.errors import BatonError, CapacityError, DeadlineExceeded, DeadlineOutOfReach
from baton.identity import Role
from baton.settings import UpSettings
from bench.costs import Costs
from bench.simulate.attempt import Attempt
from bench.simulate.clock import PS, Clock, ps
from bench.simulate.jobs import Job
from bench.simulate.machine import LAYERS, MODEL, Machine
from bench.simulate.network import Network
from bench.simulate.outcome import Outcome
from gateway.admission import Admission, QueueLimits, Ticket, pace
from gateway.again import Again
from gateway.booking import Booking
from gateway.caches import Prefix
from gateway.fleet import Worker
from gateway.placement import Need, Place, Placement
from gateway.policies import Policies
from gateway.roster import Roster
from gateway.waiting import Turn, Waiter, WaitingRoom


class Gateway:
    """Takes jobs, and sends them to machines."""

    def __init__(
        self,
        clock: Clock,
        settings: UpSettings,
        costs: Costs,
        policies: Policies,
        rng: random.Random,
        outcome: Outcome,
    ) -> None:
        self.clock = clock
        self.outcome = outcome
        self.deadlines = settings.deadlines
        self.room = WaitingRoom(clock)
        self.hop = ps(costs.hop_s)
        self.network = Network.of(costs, LAYERS)
        self._request = ps(costs.request_s)
        self._placement = Placement(rng, policies)
        self.again = Again(lambda seconds, call: clock.after(ps(seconds), call), self.room.changed)
        self.roster = Roster()
        self.machines: dict[Worker, Machine] = {}
        self._computing: list[Worker] = []  # prompts, and nobody changes
        # Without a first token, and when (ps) that is too late. All have the same time, so the
        # first one's is next; a timer for each would outlive most of them by far.
        self._expected: dict[Course, int] = {}
        self._watching = False
        self.admission = Admission(
            QueueLimits(tokens=settings.max_queue_tokens, requests=settings.max_queue_requests),
            self.room,
            lambda: pace(self._computing),
            Gauge("simulated_queue_tokens", "as the gateway's", registry=None),
            clock,
        )

    def follow(self, machines: Sequence[Machine]) -> None:
        """The fleet, from now on."""
        self.machines = {machine.worker: machine for machine in machines}
        self.roster = Roster(self.machines)
        self._computing = [
            worker
            for worker in self.machines
            if Role.PREFILL in worker.report.roles or worker.report.local_prefill
        ]

    def arrive(self, job: Job) -> None:
        """A client sends a request now."""
        course = Course(self, job)
        self.clock.after(self._request, course.admit)

    def expect(self, course: Course, by: int) -> None:
        """Tell it when its first token is too late (ps), unless that is ``settled``. They come in
        order."""
        self._expected[course] = by
        if not self._watching:
            self._watching = True
            self.clock.at(by, self._too_late)

    def settled(self, course: Course) -> None:
        """It has its first token, or will have none; idempotent."""
        self._expected.pop(course, None)

    def _too_late(self) -> None:
        self._watching = False
        for course, by in [*self._expected.items()]:
            if by > self.clock.now:
                self._watching = True
                self.clock.at(by, self._too_late)
                return
            self.settled(course)
            course.too_late()

    def choose(self, need: Need) -> Place | None:
        """Raises NoWorker, ContextLengthExceeded."""
        return self._placement.choose(self.roster, need)

    def need(self, job: Job, generated: int, attempts: int, last: Worker | None) -> Need:
        return Need(
            model=MODEL,
            tokens=job.tokens + generated,
            longest=job.tokens + job.output,
            prefer="" if last is None else last.instance_id,
            local_prefill=attempts > 0,
            prefix=Prefix(job.ids, b""),
        )


class Course:
    """A request, over all its attempts."""

    def __init__(self, gateway: Gateway, job: Job) -> None:
        self._gateway = gateway
        self._job = job
        self._arrived = gateway.clock.now
        self._turn = Turn(0, 0)
        self._waiter: Waiter | None = None
        self._ticket: Ticket | None = None
        self._booking: Booking | None = None
        self._attempt: Attempt | None = None
        self._place: Place | None = None
        self._last: Worker | None = None  # whose cache has what was generated so far
        self._attempts = 0
        self._generated = 0
        self._first = 0  # ps: when the first token was there; 0 before
        self._latest = 0  # likewise, of the last attempt's first

    # -- waiting for a place -----------------------------------------------------------------

    def admit(self) -> None:
        gateway, job = self._gateway, self._job
        self._turn = gateway.room.arrive(0)
        try:
            self._ticket = gateway.admission.take(job.tokens, gateway.deadlines, self._turn)
        except CapacityError as error:
            gateway.outcome.refused[error.code] += 1
            return
        gateway.outcome.queue = max(gateway.outcome.queue, gateway.admission.tokens)
        if math.isfinite(gateway.deadlines.first_token):
            gateway.expect(self, self._arrived + ps(gateway.deadlines.first_token))
        self._enter()

    def _enter(self) -> None:
        gateway = self._gateway
        tokens = self._job.tokens + self._generated
        waiter = gateway.room.enter(self._turn, tokens, self._wake)
        self._waiter = waiter
        self._look()
        if self._waiter is waiter:
            gateway.outcome.line = max(gateway.outcome.line, len(gateway.room))
            queue = gateway.deadlines.queue
            if math.isfinite(queue):
                gateway.clock.after(ps(queue), lambda: self._waited(waiter))

    def _wake(self) -> None:
        self._gateway.clock.after(0, self._look)

    def _look(self) -> None:
        waiter, room = self._waiter, self._gateway.room
        if waiter is None:
            return
        try:
            place = room.look(waiter, self._start)
        except BatonError as error:
            self._fail(error)
            return
        if place is not None:
            self._waiter = None
            room.leave(waiter)

    def _start(self) -> Place | None:
        gateway, job = self._gateway, self._job
        need = gateway.need(job, self._generated, self._attempts, self._last)
        place = gateway.choose(need)
        if place is None:
            return None
        self._require_time(place)
        machines, now = gateway.machines, gateway.clock()
        prefill = None if place.prefill is None else machines[place.prefill]
        self._attempts += 1
        self._place = place
        self._attempt = Attempt(
            gateway.clock,
            gateway.network,
            gateway.hop,
            self,
            job,
            self._generated,
            machines[place.decode],
            prefill,
            place,
        )
        self._booking = Booking(place.decode, place.prefill, need.tokens, now, cached=place.cached)
        return place

    def _require_time(self, place: Place) -> None:
        """As the orchestrator's."""
        gateway = self._gateway
        if self._generated or len(gateway.room) < 2:
            return
        worker, missing = place.prefill or place.decode, self._job.tokens - place.cached
        seconds = worker.begins_in + missing * worker.report.load.prefill_token
        left = gateway.deadlines.first_token - (gateway.clock.now - self._arrived) / PS
        if seconds > left:
            raise DeadlineOutOfReach(f"{seconds:.3g} s are needed, {left:.3g} s are left")

    # -- what comes of an attempt ---------------------------------------------------------------

    def began(self, cached: int, *, local: bool, at: int) -> None:
        gateway, outcome = self._gateway, self._gateway.outcome
        if not self._first:
            self._first = at
            gateway.settled(self)
            outcome.cached_tokens += cached
            outcome.local += local
        self._latest = at
        if self._ticket is not None:
            self._ticket.give_back()
        if self._booking is not None:
            self._booking.started()
        gateway.room.changed()

    def went_on(self, at: int) -> None:
        gateway = self._gateway
        gateway.outcome.gaps.add(at - self._latest, 1)
        if self._booking is not None and self._booking.handed_over():
            gateway.room.changed()

    def ended(self, at: int) -> None:
        outcome, job = self._gateway.outcome, self._job
        self._leave()
        took = (at - self._first) / PS
        outcome.answered(
            self._arrived / PS,
            (self._first - self._arrived) / PS,
            took / (job.output - 1) if job.output > 1 else 0.0,
        )
        outcome.output_tokens += job.output
        outcome.ended = max(outcome.ended, at / PS)

    def full(self, *, prefill: bool) -> None:
        """A worker had less room than was thought: wait again, in the old turn."""
        place, gateway = self._place, self._gateway
        if place is None or self._attempt is None:
            return  # given up meanwhile
        self._leave()  # first: what leaves a worker speaks for room there
        refusing = place.prefill if prefill and place.prefill is not None else place.decode
        refusing.refused()
        gateway.again.soon(place)
        self._enter()

    def preempted(self, generated: int) -> None:
        self._gateway.outcome.preempted += 1
        self._generated = generated
        self._last = None if self._place is None else self._place.decode
        self._leave()
        self._enter()

    # -- the end --------------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        if self._booking is not None:
            self._booking.ended()
            self._booking = None
        self._gateway.room.changed()

    def too_late(self) -> None:
        """The time for its first token is over."""
        self._fail(DeadlineExceeded("first_token", self._gateway.deadlines.first_token))

    def _waited(self, waiter: Waiter) -> None:
        if self._waiter is waiter:
            self._fail(DeadlineExceeded("queue", self._gateway.deadlines.queue))

    def _fail(self, error: BatonError) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._gateway.room.leave(waiter)
        if self._ticket is not None:
            self._ticket.give_back()
        self._leave()
        self._gateway.settled(self)
        self._gateway.outcome.refused[error.code] += 1
