"""How long a request still waits, over all its attempts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from baton.deadlines import Deadlines
from baton.errors import DeadlineExceeded


class Patience:
    """``async with patience:`` bounds what is inside by whichever deadline comes first;
    ``watching`` bounds each wait between tokens, with one timer for all of them.

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
        before, now = self._last_token, self._clock()
        self._last_token = now
        return now - (self._arrival if before is None else before)

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

    @contextmanager
    def watching(
        self, waits: Callable[[], bool], late: Callable[[DeadlineExceeded], None]
    ) -> Iterator[None]:
        """Calls ``late``, once, when a deadline passes. Between two tokens that is only while it
        ``waits``: who has a token and does not take it is not kept waiting.

        The timer is not set anew with every token: when it rings it looks whether it is time."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def ring_at(due: float) -> None:
            nonlocal timer
            timer = loop.call_at(due, look) if math.isfinite(due) else None

        def look() -> None:
            now, (due, phase, seconds) = loop.time(), self._next()
            if now < due:
                ring_at(due)
            elif phase != "total" and not waits():
                ring_at(now + seconds)
            else:
                late(DeadlineExceeded(phase, seconds))

        ring_at(self._next()[0])
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

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
