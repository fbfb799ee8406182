"""What a server has refused: counted, every time, and logged, now and then."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

#: Seconds for which a message that was logged is only counted: who is refused tries again.
QUIET = 60.0
#: Messages known to have been logged; they are made of what others send.
_REMEMBERED = 256


class Refusals:
    """On the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.counts: Counter[str] = Counter()  #: by reason
        #: When each message was logged last, and how often it would have been since; oldest first.
        self._logged: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, why: str, message: str, times: int = 1, **about: str) -> None:
        """``why``: as it is counted. ``about``: goes to the log, with how many refusals it stands
        for."""
        self.counts[why] += times
        now = self._clock()
        at, unsaid = self._logged.get(message, (float("-inf"), 0))
        unsaid += times
        if now - at < QUIET:
            self._logged[message] = at, unsaid
            return
        self._logged[message] = now, 0
        self._logged.move_to_end(message)
        if len(self._logged) > _REMEMBERED:
            self._logged.popitem(last=False)
        log.warning("refused", reason=message, times=unsaid, **about)
