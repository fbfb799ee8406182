"""What is shown: what gateways say put together. It knows no screen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from baton import live
from baton.top.feed import Down, Said
from baton.top.fleet import Fleet, View
from baton.top.streams import Stream, Streams

#: Seconds of throughput, and lines of notes, that are kept.
HISTORY, NOTES = 240, 500
#: HTTP status of a request whose client left.
_LEFT = 499


class Tone(Enum):
    """How much a note matters."""

    PLAIN = "plain"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened."""

    at: float  #: Unix seconds by our clock
    tone: Tone
    text: str


@dataclass(slots=True)
class Gateway:
    """One whose feed is followed."""

    name: str
    said: live.Gateway | None = None  #: None until it is heard for the first time
    why: str | None = "connecting"  #: it cannot be heard; None while it can
    ahead: float = 0.0  #: seconds from our monotonic clock to its Unix seconds


@dataclass(frozen=True, slots=True)
class Figures:
    """Of all gateways that can be heard together; None where there is nothing to say."""

    models: str
    placement: str
    heard: int  #: gateways
    gateways: int
    tokens_per_s: float
    open: int
    waiting: int
    queued_tokens: int
    ttft_p50: float | None  #: milliseconds, over the last minute, as those below
    ttft_p99: float | None
    itl_p50: float | None
    itl_p99: float | None


class Scene:
    """Changed by ``hear`` and, a few times a second, by ``tick``."""

    def __init__(
        self,
        gateways: list[str],
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """``gateways``: their names. Clocks in seconds, the first never goes back."""
        self.notes: deque[Note] = deque(maxlen=NOTES)
        self.noted = 0  #: notes there ever were
        self.history: deque[float] = deque(maxlen=HISTORY)  #: tokens per second, every second
        self._gateways = {name: Gateway(name) for name in gateways}
        self._fleet = Fleet()
        self._streams = Streams()
        self._clock = clock
        self._unix = unix
        self._ticked = clock()

    # -- what is said ----------------------------------------------------------------------------

    def hear(self, name: str, said: Said) -> None:
        """What the gateway of this name says, or that it cannot be heard."""
        gateway, now = self._gateways[name], self._clock()
        match said:
            case Down():
                self._lose(gateway, said.why)
            case live.Snapshot():
                self._meet(gateway, said, now)
            case live.Gateway():
                gateway.said, gateway.ahead = said, said.at - now
            case live.Worker():
                self._compare(*self._fleet.hear(name, said))
            case live.WorkerGone():
                view = self._fleet.gone(name, said)
                if view is not None and said.id is not None:
                    self.note(Tone.WARN, f"{_called(view)} is gone")
            case live.Lost():
                text = f"{name}: we were too slow for {said.events} events; looking anew"
                self.note(Tone.WARN, text)
            case _:
                self._streams.hear(name, said, now)

    def tick(self) -> None:
        """Keep the history, and say what has added up."""
        now = self._clock()
        if now - self._ticked < 1:
            return
        self._ticked = now
        self.history.append(sum(g.said.tokens_per_s for g in self._heard if g.said))
        for (worker, reason), count in self._streams.broken.items():
            text = f"{_counted(count, 'stream')} left {worker}: {reason}; going on elsewhere"
            self.note(Tone.WARN, text)
        for (status, reason), count in self._streams.failed.items():
            if status == _LEFT:
                self.note(Tone.PLAIN, f"{_counted(count, 'client')} left")
            else:
                self.note(Tone.BAD, f"{_counted(count, 'request')} failed: {status} {reason}")
        self._streams.broken.clear()
        self._streams.failed.clear()

    def note(self, tone: Tone, text: str) -> None:
        """Write down that something happened."""
        self.notes.append(Note(self._unix(), tone, text))
        self.noted += 1

    # -- what is shown ---------------------------------------------------------------------------

    def workers(self) -> list[View]:
        """In no order."""
        return self._fleet.views()

    def streams(self) -> list[Stream]:
        """The open requests that are known, in no order."""
        return list(self._streams)

    def age(self, stream: Stream) -> float:
        """Seconds since it arrived."""
        return max(0.0, self._clock() + self._gateways[stream.gateway].ahead - stream.arrived)

    def figures(self) -> Figures:
        now = self._clock()
        said = [gateway.said for gateway in self._heard if gateway.said]
        ttft = self._streams.ttft.percentiles(0.5, 0.99, now=now)
        itl = self._streams.itl.percentiles(0.5, 0.99, now=now)
        return Figures(
            models=", ".join(sorted({one.model for one in said})),
            placement=", ".join(sorted({one.placement for one in said})),
            heard=len(self._heard),
            gateways=len(self._gateways),
            tokens_per_s=sum(one.tokens_per_s for one in said),
            open=sum(one.open for one in said),
            waiting=sum(one.waiting for one in said),
            queued_tokens=sum(one.queued_tokens for one in said),
            ttft_p50=ttft[0],
            ttft_p99=ttft[1],
            itl_p50=itl[0],
            itl_p99=itl[1],
        )

    def alarms(self, workers: list[View]) -> list[Note]:
        """What needs a look now, the worst first; ``workers`` as of ``workers()``."""
        found = [
            Note(0.0, Tone.BAD, f"{gateway.name} cannot be heard: {gateway.why}")
            for gateway in self._gateways.values()
            if gateway.why is not None
        ]
        for view in sorted(workers, key=lambda view: -view.trouble):
            if view.heard and view.state not in ("healthy", "connecting"):
                why = f": {view.worker.reason}" if view.worker.reason else ""
                found.append(Note(0.0, Tone.BAD, f"{_called(view)} is {view.state}{why}"))
            elif view.heard and view.slow:
                found.append(Note(0.0, Tone.WARN, f"{_called(view)} is slow: {view.slow.text}"))
        return found

    # -- gateways and workers --------------------------------------------------------------------

    @property
    def _heard(self) -> list[Gateway]:
        return [gateway for gateway in self._gateways.values() if gateway.why is None]

    def _meet(self, gateway: Gateway, said: live.Snapshot, now: float) -> None:
        back = gateway.said is not None
        if gateway.why is not None:
            count = _counted(len(said.workers), "worker")
            self.note(Tone.GOOD, f"{gateway.name} is {'back' if back else 'there'}, with {count}")
        gateway.said, gateway.why, gateway.ahead = said.gateway, None, said.at - now
        self._fleet.snapshot(gateway.name, said.workers)
        self._streams.snapshot(gateway.name, said.requests)

    def _lose(self, gateway: Gateway, why: str) -> None:
        if gateway.why is None or gateway.said is None:
            if gateway.why != why:
                self.note(Tone.BAD, f"{gateway.name} cannot be heard: {why}; trying again")
            self._fleet.silence(gateway.name)
            self._streams.forget(gateway.name)
        gateway.why = why

    def _compare(self, before: View | None, after: View) -> None:
        """Note what has changed of a worker."""
        called = _called(after)
        if before is None:
            if after.worker.id is not None:  # else it is yet to report
                self.note(Tone.GOOD, f"{called} has come")
            return
        if after.state != before.state:
            tone = Tone.GOOD if after.state == "healthy" else Tone.BAD
            why = f": {after.worker.reason}" if after.worker.reason else ""
            self.note(tone, f"{called} is {after.state}{why}")
        if after.role != before.role:
            self.note(Tone.PLAIN, f"{called} does {after.role} now, no longer {before.role}")
        if after.worker.draining and not before.worker.draining:
            self.note(Tone.WARN, f"{called} is draining")
        if after.worker.breaker != before.worker.breaker:
            tone = Tone.GOOD if after.worker.breaker == "closed" else Tone.WARN
            self.note(tone, f"{called}: its breaker is {after.worker.breaker}")
        if after.slow and not before.slow:
            self.note(Tone.BAD, f"{called} is slow: {after.slow.text}")
        elif before.slow and not after.slow:
            self.note(Tone.GOOD, f"{called} is no longer slow")


def _called(view: View) -> str:
    name = f"{view.worker.id} at " if view.worker.id else ""
    return f"{view.role or 'worker'} {name}{view.worker.address}"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
