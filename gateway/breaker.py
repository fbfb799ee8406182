"""A circuit breaker per worker: one that keeps failing is left alone for a while, then tried once.

    closed --FAILURES in a row--> open --pause over--> half-open --an attempt--> trial
      ^                            ^                       ^                       |
      +--------- success ----------+-------- failure ------+--- it told nothing ---+

Plain state, no clock: whoever calls says what time it is.
"""

from __future__ import annotations

from enum import Enum

#: Attempts that fail in a row before a worker is left alone.
FAILURES = 3
#: Seconds that it is left alone: the first time, doubled with every trial that fails, at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    TRIAL = "trial"


class Breaker:
    """Counts failures, not incidents: a session that breaks under 200 attempts is one failure, as
    none of them was placed after the first had failed."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._failures = 0
        self._last_failure = float("-inf")
        self._pause = FIRST_PAUSE
        self._until = 0.0

    @property
    def refuses(self) -> bool:
        """Whether the worker gets nothing now."""
        return self.state is State.OPEN or self.state is State.TRIAL

    def tick(self, now: float) -> None:
        """Called now and then: an open breaker lets one attempt try once its pause is over."""
        if self.state is State.OPEN and now >= self._until:
            self.state = State.HALF_OPEN

    def began(self) -> bool:
        """An attempt was placed; returns whether it is the trial."""
        if self.state is not State.HALF_OPEN:
            return False
        self.state = State.TRIAL
        return True

    def undecided(self) -> None:
        """The trial has ended and told nothing, as when its client went away."""
        if self.state is State.TRIAL:
            self.state = State.HALF_OPEN

    def succeeded(self) -> None:
        self.state = State.CLOSED
        self._failures = 0
        self._pause = FIRST_PAUSE

    def failed(self, began: float, now: float, *, silent: bool = False) -> None:
        """An attempt that was placed at ``began`` failed through the worker's fault. If that took
        all beats of a ``silent`` peer it weighs as much as several: the next would as well."""
        if began <= self._last_failure:
            return
        self._last_failure = now
        self._failures += FAILURES if silent else 1
        if self.state in (State.TRIAL, State.HALF_OPEN):  # the latter: it has left by now
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        elif self._failures < FAILURES:
            return
        self.state = State.OPEN
        self._until = now + self._pause
