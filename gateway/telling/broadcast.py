"""The live feed put together: requests, workers and the gateway itself, for whoever connects."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice

from baton import live
from gateway.telling.feed import WAITING, Feed, Listener
from gateway.telling.live import Clock, Counting, Live, standing
from gateway.telling.paces import Paces
from gateway.telling.tale import Tale
from gateway.telling.workers import Workers

#: Requests in a snapshot, so that to connect does not hold up the loop.
_NEWEST = 1000
#: Seconds between two words of the gateway, and between two looks at the requests: in each, so many
#: of them are told of, as a listener lets no more events wait than WAITING.
_EVERY, _LOOK, _AT_ONCE = 1.0, 0.25, WAITING // 2


@dataclass(frozen=True, slots=True)
class Figures:
    """What the gateway says of itself, but for what is counted here."""

    instance_id: str
    model: str
    placement: str
    queued_tokens: Callable[[], int]
    waiting: Callable[[], int]


class Broadcast:
    """Knows the requests that are open. While somebody listens it hears of each, and looks at the
    workers; otherwise it does nothing."""

    def __init__(self, feed: Feed, workers: Workers, paces: Paces, figures: Figures) -> None:
        """``paces``: those that ``workers`` are judged by."""
        self._feed = feed
        self._paces = paces
        self._workers = workers
        self._figures = figures
        self._clock = Clock(time.time() - time.monotonic())
        self._count = Counting()
        self._open: dict[Tale, None] = {}  # in order of arrival; several may share an id
        self._hearing: dict[Tale, Live] = {}  # those told of longest ago first
        self._said_at = 0.0
        self._said_tokens = 0
        feed.on_watched = self._turn

    # -- requests ------------------------------------------------------------------------------

    def opened(self, tale: Tale) -> None:
        self._open[tale] = None
        if self._feed.watched:
            self._hear(tale)

    def closed(self, tale: Tale) -> None:
        self._open.pop(tale, None)
        self._hearing.pop(tale, None)

    def _hear(self, tale: Tale) -> None:
        hearer = Live(tale, self._feed, self._paces, self._clock, self._count)
        self._hearing[tale] = hearer
        tale.hear(hearer)

    def _turn(self, watched: bool) -> None:
        """Hear of those that are open from now on, or no more."""
        if watched:
            self._said_at, self._said_tokens = time.monotonic(), self._count.tokens
            for tale in self._open:
                self._hear(tale)
            return
        for tale, hearer in self._hearing.items():
            tale.leave(hearer)
        self._hearing.clear()
        self._workers.forget()

    # -- listeners -----------------------------------------------------------------------------

    def require_room(self) -> None:
        """Raise RateLimited when too many listen."""
        self._feed.require_room()

    async def listen(self) -> AsyncGenerator[list[tuple[str, str]], None]:
        """Events as type and data, the snapshot first. Raises RateLimited: see ``require_room``."""
        with self._listener() as listener:
            async with aclosing(listener.take()) as waiting:
                async for events in waiting:
                    yield events

    @contextmanager
    def _listener(self) -> Iterator[Listener]:
        snapshot = self._snapshot()  # before it listens: what is told to the others is in there
        with self._feed.listen() as listener:
            listener.put(snapshot.name, live.rendered(snapshot))
            yield listener

    async def run(self) -> None:
        """Tell of workers and of the gateway, for as long as somebody listens, for ever."""
        looked_at = 0.0  # at the workers
        while True:
            await self._feed.until_watched()
            await self._feed.pause(_LOOK)
            now = time.monotonic()
            if not self._feed.watched:
                continue
            self._look(now)
            if now - looked_at >= self._workers.pause:
                looked_at = now
                self._workers.look(self._clock.unix)
            if now - self._said_at >= _EVERY:
                self._feed.say(self._gateway())

    def _look(self, now: float) -> None:
        """Tell how far requests are."""
        for tale, hearer in list(islice(self._hearing.items(), _AT_ONCE)):
            hearer.look(now)
            self._hearing[tale] = self._hearing.pop(tale)

    def close(self) -> None:
        """End every connection."""
        self._feed.close()

    def _snapshot(self) -> live.Snapshot:
        newest = islice(reversed(self._open), _NEWEST)
        return live.Snapshot(
            at=self._clock.unix(time.monotonic()),
            gateway=self._gateway(),
            workers=self._workers.snapshot(self._clock.unix),
            requests=[standing(tale, self._clock) for tale in newest][::-1],
        )

    def _gateway(self) -> live.Gateway:
        now, tokens = time.monotonic(), self._count.tokens
        seconds = now - self._said_at
        rate = (tokens - self._said_tokens) / seconds if self._feed.watched and seconds else 0.0
        if self._feed.watched and seconds >= _EVERY:
            self._said_at, self._said_tokens = now, tokens
        return live.Gateway(
            at=self._clock.unix(now),
            instance=live.short(self._figures.instance_id),
            model=self._figures.model,
            placement=self._figures.placement,
            queued_tokens=self._figures.queued_tokens(),
            waiting=self._figures.waiting(),
            open=len(self._open),
            tokens_per_s=round(rate, 1),
        )
