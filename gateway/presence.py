"""Whether workers were there a moment ago, so that a request may wait for them to come back."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Seconds between looks at the fleet.
_INTERVAL = 0.25


class Presence:
    """Remembers when the fleet could last serve.

    A worker that is started again, the only one of its role, is back within seconds: requests that
    come meanwhile wait for it, for ``grace`` seconds at most after it was last seen, rather than be
    refused. Where there was none for longer they are refused at once.
    """

    def __init__(
        self,
        serves: Callable[[], bool],
        grace: float,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        """``serves``: whether some worker could take a request now, full or not. ``changed`` is
        called with every look."""
        self._serves = serves
        self._grace = grace
        self._clock = clock
        self._changed = changed
        self._looked = self._seen = -math.inf

    def look(self) -> None:
        """To be called whenever the fleet may have changed, and often while it is there."""
        now = self._clock()
        if now - self._looked >= _INTERVAL:
            self._looked = now
            if self._serves():
                self._seen = now
        self._changed()

    @property
    def lately(self) -> bool:
        """Whether it could serve less than ``grace`` seconds ago."""
        return self._clock() - self._seen < self._grace
