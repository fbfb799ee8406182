"""Which gateway a call asks next, how long it waits before, and when it gives up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from baton.backoff import Backoff
from baton.errors import (
    BatonError,
    CapacityError,
    DeadlineExceeded,
    GatewayLost,
    IncompatiblePeer,
    InvalidRequest,
    PeerError,
)

#: Pauses before a gateway that failed is asked again, in seconds: the first, and the longest.
_PAUSES = (0.1, 5.0)
#: Seconds that a call goes on failing before it gives up.
PATIENCE = 30.0
#: Clients that were told the same time come one after the other: so much later at most.
_SPREAD = 1.25


class Gateways:
    """Those that a client was given. Calls go to each in turn, and to those that could not be
    reached only when it is time to look again, or there is no other.

    Calls of several threads may share it: what two of them write at once, either may win.
    """

    def __init__(self, given: Iterable[str | Iterable[str]], rng: random.Random) -> None:
        """``given``: URLs, and lists of them. Raises InvalidRequest without any, and for what is
        none."""
        lists = ([each] if isinstance(each, str) else each for each in given)
        self.urls = tuple(_base(url) for urls in lists for url in urls)
        if not self.urls:
            raise InvalidRequest("no gateway is given; one is needed: http://HOST:8000")
        self._rng = rng
        self._turn = rng.randrange(len(self.urls))
        self._lost: dict[str, tuple[float, Backoff]] = {}

    def turns(self) -> list[str]:
        """All, the one whose turn it is first."""
        self._turn = first = (self._turn + 1) % len(self.urls)
        return [*self.urls[first:], *self.urls[:first]]

    def rests(self, url: str) -> float:
        """When it may be asked, on the callers' clock."""
        return self._lost[url][0] if url in self._lost else -math.inf

    def reached(self, url: str) -> None:
        self._lost.pop(url, None)

    def lost(self, url: str, now: float) -> None:
        _, backoff = self._lost.get(url) or (0.0, Backoff(*_PAUSES, self._rng))
        self._lost[url] = now + backoff.pause(), backoff


def _base(url: str) -> str:
    """Without the path under which OpenAI's clients look for the API."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no URL of a gateway, such as http://HOST:8000")
    return url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do next: wait, then ask."""

    url: str
    wait: float  #: seconds


class Tries:
    """One call's way through the gateways."""

    def __init__(
        self,
        gateways: Gateways,
        *,
        patience: float,
        deadline: float,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """``patience``: seconds that may pass from a failure on without a new token; ``deadline``:
        for all of the call, or ``math.inf``."""
        self._gateways = gateways
        self._patience = patience
        self._deadline = deadline
        self._clock = clock
        self._rng = rng
        self._began = clock()
        self._order = gateways.turns()
        self._backoff = Backoff(*_PAUSES, rng)
        self._rests: dict[str, float] = {}
        self._failing_since: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the call."""
        return self._clock() - self._began

    def left(self) -> float:
        """Seconds until the deadline. Raises DeadlineExceeded."""
        left = self._deadline - self.elapsed
        if left <= 0:
            raise DeadlineExceeded("total", self._deadline)
        return left

    def next(self) -> Turn:
        """The gateway that may be asked first, of several the one whose turn it is. Raises
        DeadlineExceeded."""
        self.left()
        now = self._clock()
        url = min(self._order, key=lambda url: max(now, self._until(url)))
        return Turn(url, max(0.0, self._until(url) - now))

    def got_on(self, url: str) -> None:
        """It gave a token, or an answer: what is still to come is asked of it first."""
        self._gateways.reached(url)
        if self._order[0] != url:
            self._order.sort(key=lambda each: each != url)
        if self._failing_since is not None:
            self._failing_since = None
            self._rests.clear()
            self._backoff.reset()

    def failed(self, url: str, error: BatonError) -> None:
        """Raises the error when no other try could mend it or none may come in time, and
        DeadlineExceeded when it is too late."""
        self.left()
        if not _mendable(error):
            raise error
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if isinstance(error, GatewayLost):
            self._gateways.lost(url, now)
        self._rests[url] = now + self._pause(error)
        turn = self.next()
        given_up = self._failing_since + self._patience
        if now + turn.wait > min(given_up, self._began + self._deadline):
            raise error

    def _pause(self, error: BatonError) -> float:
        """Seconds in which the gateway that said it is not asked again."""
        pause = self._backoff.pause()
        if isinstance(error, CapacityError):
            pause = max(pause, error.retry_after * self._rng.uniform(1.0, _SPREAD))
        return pause

    def _until(self, url: str) -> float:
        return max(self._rests.get(url, -math.inf), self._gateways.rests(url))


def _mendable(error: BatonError) -> bool:
    """By the same gateway later, or by another one."""
    return isinstance(error, CapacityError | PeerError) and not isinstance(error, IncompatiblePeer)
