"""Noticing that something takes too long, with one timer however often it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class Stall:
    """``with stall:`` around each thing; all of them within ``async with stall.watching():``.

    What is inside that is cancelled once nothing was done for ``seconds`` while something was under
    way; then ``passed`` says so. Or by ``cut``. On the event loop alone.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._under_way = 0
        self._since = 0.0  #: the first of these began, or another was done
        self._limit: asyncio.Timeout | None = None

    def __enter__(self) -> None:
        if not self._under_way:
            self._since = self._clock()
        self._under_way += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._under_way -= 1
        self._since = self._clock()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Swallows the cancellation that it causes."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            now = self._clock()
            due = (self._since if self._under_way else now) + self._seconds
            if now < due:
                timer = loop.call_at(due, look)
            else:
                self.passed = True
                self.cut()

        look()
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError:
            if self._limit is None or not self._limit.expired():
                raise
        finally:
            self._limit = None
            if timer is not None:
                timer.cancel()

    def cut(self) -> None:
        """Cancel what is inside, if it is not over."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._clock())
