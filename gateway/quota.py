"""What one API key may ask for: requests at once, per minute, prompt tokens, priority."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from baton.errors import InvalidRequest, RateLimited
from baton.keys import KeyLimits

_MINUTE = 60.0


class TokenBucket:
    """Holds at most a minute's worth, refilled steadily. Plain state: the caller says when it is.

    A full bucket gives any amount and goes into debt, so that what is larger than the bucket is
    served now and then, and the rate holds on average.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_minute = per_minute
        self._level = per_minute
        self._since = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until it gives so much; 0 when it does at once."""
        self._refill(now)
        missing = min(amount, self._per_minute) - self._level
        return max(0.0, missing * _MINUTE / self._per_minute)

    def take(self, amount: float, now: float) -> None:
        self._refill(now)
        self._level -= amount

    def change(self, per_minute: float, now: float) -> None:
        """Another rate from now on; what was taken stays taken."""
        self._refill(now)
        self._level = min(per_minute, self._level + per_minute - self._per_minute)
        self._per_minute = per_minute

    def _refill(self, now: float) -> None:
        gained = (now - self._since) * self._per_minute / _MINUTE
        self._level = min(self._per_minute, self._level + gained)
        self._since = now


class Quota:
    """What is left of a key's limits."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._limits = KeyLimits()
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.change(limits)

    def change(self, limits: KeyLimits) -> None:
        """Other limits from now on."""
        now, old = self._clock(), self._limits
        if limits.requests_per_minute != old.requests_per_minute:
            self._requests = _changed(self._requests, limits.requests_per_minute, now)
        if limits.tokens_per_minute != old.tokens_per_minute:
            self._tokens = _changed(self._tokens, limits.tokens_per_minute, now)
        self._limits = limits

    def priority(self, asked: int | None) -> int:
        """What a request is given; without a wish 0, or the best of a key that may not have that.
        Raises InvalidRequest."""
        best = self._limits.best_priority
        if asked is None:
            return 0 if best is None else max(0, best)
        if best is not None and asked < best:
            raise InvalidRequest(
                f"priority is {asked}, but this API key may ask for {best} at best",
                param="priority",
            )
        return asked

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, from its head to the end of its answer. Raises RateLimited."""
        most = self._limits.concurrent
        if most is not None and self._running >= most:
            raise RateLimited(f"{self._running} requests are running of at most {most} at once")
        self._take(self._requests, 1, "requests", self._limits.requests_per_minute)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def require_room(self, unheard: int) -> None:
        """Raise RateLimited where requests that go on without their clients, so many, leave no room
        for those that run."""
        most = self._limits.concurrent
        if most is not None and self._running + unheard > most:
            raise RateLimited(
                f"{self._running} requests are running and {unheard} go on without a client, of at "
                f"most {most} at once"
            )

    def spend(self, tokens: int) -> None:
        """A prompt of so many tokens is about to be computed. Raises RateLimited."""
        self._take(self._tokens, tokens, "prompt tokens", self._limits.tokens_per_minute)

    def _take(
        self, bucket: TokenBucket | None, amount: int, what: str, per_minute: float | None
    ) -> None:
        if bucket is None:
            return
        now = self._clock()
        if wait := bucket.wait(amount, now):
            raise RateLimited(
                f"{amount} more would exceed the limit of {per_minute:g} {what} per minute",
                retry_after=wait,
            )
        bucket.take(amount, now)


def _changed(
    bucket: TokenBucket | None, per_minute: float | None, now: float
) -> TokenBucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return TokenBucket(per_minute, now)
    bucket.change(per_minute, now)
    return bucket


UNLIMITED = KeyLimits()
