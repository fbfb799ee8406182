"""Noticing that something takes too long, with one timer however often it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Stall:
    """``with stall:`` around each thing; all of them within ``with stall.watching(late):``.

    ``late`` is called, once, when nothing was done for ``seconds`` while something was under way.
    On the event loop alone.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._under_way = 0
        self._since = 0.0  #: the first of these began, or another was done

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

    @contextmanager
    def watching(self, late: Callable[[], None]) -> Iterator[None]:
        """See the class."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            now = self._clock()
            due = (self._since if self._under_way else now) + self._seconds
            if now < due:
                timer = loop.call_at(due, look)
            else:
                late()

        look()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
