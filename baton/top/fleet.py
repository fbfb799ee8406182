"""The workers, as all gateways together see them."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from baton import live

#: From good to bad. What one gateway finds wrong with a worker counts, whatever the others say.
STATES = ("healthy", "connecting", "suspect", "refused", "out")

#: Seconds of an engine's steps that tell how long they take now, and the fewest of them that do.
_LATELY, _FEWEST = 10.0, 8
#: Seconds that tell how long they may take: prompts are long and short, and so are their steps.
_RANGE, _LONG = 30.0, 0.9
_STEPS = 128  #: that are remembered of a worker
#: A worker is slow when its steps take so many times as long as long steps of its like, and so many
#: milliseconds more; until they take less than ``_BACK`` times as long.
SLOW, _BACK, _MARGIN_MS = 2.0, 1.6, 2.0


@dataclass(frozen=True, slots=True)
class View:
    """A worker as it is shown."""

    key: str
    worker: live.Worker
    state: str  #: the worst that a gateway says
    heard: bool  #: False: by no gateway that can be heard now
    step_ms: float | None = None  #: what its steps take now; None while it computes nothing
    others_ms: float | None = None  #: what they take at the others of its roles
    long_ms: float | None = None  #: what long ones take there
    slow: bool = False

    @property
    def name(self) -> str:
        return self.worker.id or self.worker.address

    @property
    def role(self) -> str:
        """In a word; empty when it has not said."""
        roles = self.worker.roles
        return "both" if len(roles) > 1 else "".join(roles)

    @property
    def colocated(self) -> bool:
        """It decodes, and computes all its prompts itself."""
        return self.worker.local_prefill and self.role == "decode"

    @property
    def times(self) -> float:
        """How many times as long as the others' its steps take."""
        return self.step_ms / self.others_ms if self.step_ms and self.others_ms else 1.0

    @property
    def trouble(self) -> int:
        """How much it needs a look; 0: not at all."""
        if not self.heard:
            return len(STATES) + 1
        if self.state != "healthy":
            return 1 + STATES.index(self.state) if self.state in STATES else len(STATES)
        return 1 if self.slow or self.worker.draining or self.worker.breaker != "closed" else 0


class _Takes(NamedTuple):
    """What steps take, in milliseconds."""

    usual: float
    long: float


@dataclass(slots=True)
class _Seen:
    said: dict[str, live.Worker] = field(default_factory=dict)  #: by gateway, the latest last
    steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_STEPS))
    slow: bool = False

    def takes(self, now: float) -> _Takes | None:
        lately = [took for at, took in self.steps if at > now - _LATELY]
        if len(lately) < _FEWEST:
            return None
        some = sorted(took for at, took in self.steps if at > now - _RANGE)
        return _Takes(median(lately), some[int(_LONG * (len(some) - 1))])


class Fleet:
    """Takes what gateways say of workers. ``now`` is seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._silent: set[str] = set()

    def snapshot(self, gateway: str, workers: list[live.Worker], now: float) -> None:
        """All that this gateway knows."""
        self._silent.discard(gateway)
        there = {_key(worker.id, worker.address) for worker in workers}
        for key in [key for key, seen in self._seen.items() if gateway in seen.said]:
            if key not in there:
                self._forget(gateway, key)
        for worker in workers:
            self.hear(gateway, worker, now)

    def hear(self, gateway: str, worker: live.Worker, now: float) -> tuple[View | None, View]:
        """It before and now."""
        key = _key(worker.id, worker.address)
        before = self._view(key)
        seen = self._seen.setdefault(key, _Seen())
        if before is not None and _computed(worker) > _computed(before.worker):
            seen.steps.append((now, worker.last_step_ms))
        seen.said.pop(gateway, None)
        seen.said[gateway] = worker
        after = self._view(key)
        assert after is not None
        return before, after

    def gone(self, gateway: str, said: live.WorkerGone) -> View | None:
        """It as it was, when no other gateway has it any more."""
        key = _key(said.id, said.address)
        before = self._view(key)
        self._forget(gateway, key)
        return None if key in self._seen else before

    def silence(self, gateway: str) -> None:
        """What this gateway says counts no more, until it is heard again."""
        self._silent.add(gateway)

    def judge(self, now: float) -> Iterator[View]:
        """Tell slow workers from others anew; those of which that has changed."""
        for view in self.views(now):
            seen = self._seen[view.key]
            slow = _is_slow(view, _BACK if seen.slow else SLOW)
            if slow != seen.slow:
                seen.slow = slow
                yield replace(view, slow=slow)

    def views(self, now: float) -> list[View]:
        """All, in no order."""
        takes = {key: seen.takes(now) for key, seen in self._seen.items()}
        found = [view for key in self._seen if (view := self._view(key)) is not None]
        by_role: dict[str, list[_Takes]] = {}
        for view in found:
            if (took := takes[view.key]) is not None:
                by_role.setdefault(view.role, []).append(took)
        others = {role: _Others(of_role) for role, of_role in by_role.items()}
        return [
            view if (took := takes[view.key]) is None else others[view.role].beside(view, took)
            for view in found
        ]

    def _view(self, key: str) -> View | None:
        seen = self._seen.get(key)
        if seen is None:
            return None
        heard = [said for gateway, said in seen.said.items() if gateway not in self._silent]
        states = [said.state for said in heard or seen.said.values()]
        return View(
            key=key,
            worker=(heard or list(seen.said.values()))[-1],
            state=max(states, key=lambda s: STATES.index(s) if s in STATES else len(STATES)),
            heard=bool(heard),
            slow=seen.slow,
        )

    def _forget(self, gateway: str, key: str) -> None:
        seen = self._seen.get(key)
        if seen is not None:
            seen.said.pop(gateway, None)
            if not seen.said:
                del self._seen[key]


class _Others:
    """What steps take at all workers of a role, to set one beside the others."""

    def __init__(self, takes: Sequence[_Takes]) -> None:
        self._usual = sorted(took.usual for took in takes)
        self._long = sorted(took.long for took in takes)

    def beside(self, view: View, took: _Takes) -> View:
        return replace(
            view,
            step_ms=took.usual,
            others_ms=_median_without(self._usual, took.usual),
            long_ms=_median_without(self._long, took.long),
        )


def _is_slow(view: View, times: float) -> bool:
    if view.step_ms is None or view.long_ms is None:
        return False
    return view.step_ms >= max(times * view.long_ms, view.long_ms + _MARGIN_MS)


def _median_without(values: Sequence[float], one: float) -> float | None:
    """The median of ordered ``values`` less ``one`` of them; None when that leaves nothing."""
    left, out = len(values) - 1, bisect_left(values, one)
    if left == 0:
        return None
    middle = ((left - 1) // 2, left // 2)
    return sum(values[at if at < out else at + 1] for at in middle) / 2


def _key(id: str | None, address: str) -> str:
    return id or f"@{address}"


def _computed(worker: live.Worker) -> int:
    return worker.prompt_tokens + worker.generated_tokens
