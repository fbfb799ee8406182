"""How long a request still waits, over all its attempts."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

from baton.deadlines import Deadlines
from baton.errors import DeadlineExceeded


class Patience:
    """``async with patience:`` bounds what is inside by whichever deadline comes first.

    Raises DeadlineExceeded naming the phase: ``first_token`` before the first, ``inter_token``
    after it, or ``total``. Can be entered again, not nested.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._clock = asyncio.get_running_loop().time
        self._arrival = self._clock()
        self._last_token: float | None = None
        self._timeout = asyncio.timeout(None)

    @property
    def elapsed(self) -> float:
        """Seconds since arrival."""
        return self._clock() - self._arrival

    @property
    def left(self) -> float:
        """Seconds until it ends."""
        return self._next()[0] - self._clock()

    def progress(self) -> float:
        """A token is here. Returns the seconds since the one before, or since arrival."""
        waited, self._last_token = self.waited, self._clock()
        return waited

    @property
    def waited(self) -> float:
        """Seconds since the last token, or since arrival."""
        return self._clock() - (self._arrival if self._last_token is None else self._last_token)

    @property
    def started(self) -> bool:
        """Whether there was a token."""
        return self._last_token is not None

    def _next(self) -> tuple[float, str, float]:
        """When patience ends (loop time), in which phase, and the seconds that phase allows."""
        limits = self._deadlines
        total = (self._arrival + limits.total, "total", limits.total)
        if self._last_token is None:
            phase = (self._arrival + limits.first_token, "first_token", limits.first_token)
        else:
            phase = (self._last_token + limits.inter_token, "inter_token", limits.inter_token)
        return min(phase, total)

    async def __aenter__(self) -> None:
        due = self._next()[0]
        self._timeout = asyncio.timeout_at(due if math.isfinite(due) else None)
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            _, phase, seconds = self._next()
            raise DeadlineExceeded(phase, seconds) from None
