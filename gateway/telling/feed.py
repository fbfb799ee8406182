"""Who listens, and what waits for each: bounded, and nothing at all while nobody does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress

from baton.errors import RateLimited
from baton.live import Event, Lost, rendered

#: Events that wait for one listener; the oldest are lost.
WAITING = 1024
#: Connections; each costs what waits for it, and its share of rendering.
LISTENERS = 64
#: Seconds between two sends to one listener: a send costs as much as making a dozen events.
_TOGETHER = 0.1


class Listener:
    """What one connection has yet to hear."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, str]] = deque()
        self._lost = 0
        self._news = asyncio.Event()
        self._closed = False

    def put(self, name: str, data: str) -> None:
        """An event, rendered."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append((name, data))
        self._news.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._news.set()

    async def take(self) -> AsyncGenerator[list[tuple[str, str]]]:
        """All that waits, whenever something does; what was lost is said first. What comes soon
        after goes out together."""
        while not self._closed:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting = self._waiting, deque()
            lost, self._lost = self._lost, 0
            missing = [(Lost.name, rendered(Lost(events=lost)))] if lost else []
            if missing or waiting:
                yield [*missing, *waiting]
                await asyncio.sleep(_TOGETHER)


class Feed:
    """Says every event to every listener, rendered once."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._change = asyncio.Event()
        #: Called as the first comes, with True, and as the last goes, with False.
        self.on_watched: Callable[[bool], None] = lambda watched: None

    @property
    def watched(self) -> bool:
        """Somebody listens."""
        return bool(self._listeners)

    def require_room(self) -> None:
        """Raise RateLimited when too many listen."""
        if len(self._listeners) >= LISTENERS:
            raise RateLimited(
                f"{LISTENERS} connections follow /live, as many as may", retry_after=1
            )

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A listener for the body. Raises RateLimited: see ``require_room``."""
        self.require_room()
        listener = Listener()
        self._listeners.add(listener)
        if len(self._listeners) == 1:
            self._turn(True)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)
            if not self._listeners:
                self._turn(False)

    def say(self, event: Event) -> None:
        """To all."""
        if not self._listeners:
            return
        data = rendered(event)
        for listener in self._listeners:
            listener.put(event.name, data)

    def close(self) -> None:
        """End every connection: the process is about to."""
        for listener in self._listeners:
            listener.close()

    async def until_watched(self) -> None:
        """Returns once somebody listens."""
        while not self._listeners:
            await self._change.wait()

    async def pause(self, seconds: float) -> None:
        """So long, or until nobody listens any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._listeners:
                    await self._change.wait()

    def _turn(self, watched: bool) -> None:
        self._change.set()
        self._change = asyncio.Event()
        self.on_watched(watched)
