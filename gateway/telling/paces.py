"""How fast workers are, and which of them stand out from the others of their side.

The one rule, for whoever shows workers: the page and ``baton top`` tell what the feed says. Pure;
all times are seconds of one clock that never goes back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from baton import live

#: A worker is slow when it takes so many times as long as the others, until it takes less than
#: ``_BACK`` times as long. With more than ``SLOW`` times their batch it is busy instead.
SLOW, _BACK = 2.0, 1.6
#: Steps that differ by fewer milliseconds, and batches by fewer sequences, are alike.
_ALIKE_MS, _ALIKE_BATCH = 5.0, 2.0

#: Seconds that steps and streams are looked back upon, the most of each, and the fewest that tell.
_WINDOW, _KEPT, _FEWEST = 10.0, 64, 3
#: A prefill worker may be idle for long: seconds of computing that tell, and how old they may be.
_BUSY, _OLD = 4.0, 60.0
#: Fewer seconds of computing, or fewer tokens, tell nothing.
_LEAST_BUSY, _LEAST_TOKENS = 0.05, 32

#: A prompt that is being computed: id of its request, number of the attempt.
Prompt = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one worker, over the last seconds; None: not known."""

    step_ms: float | None  #: a decode step
    batch: float  #: sequences in it
    stream: float | None  #: tokens per second that each of its streams gets
    prompts: float | None  #: prompt tokens per second of computing


@dataclass(slots=True)
class _Seen:
    steps: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    streams: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    under: dict[Prompt, int] = field(default_factory=dict)  #: tokens so far
    parts: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=4 * _KEPT))
    computed_at: float = 0.0
    slow: bool = False

    def computed(self, prompt: Prompt, at: float, computed: int, total: int, cached: int) -> None:
        busy = at - self.computed_at if self.under else 0.0
        tokens = max(0, computed - max(cached, self.under.get(prompt, computed)))
        self.under[prompt] = computed
        if computed >= total:
            del self.under[prompt]
        self.computed_at = at
        self.parts.append((at, busy, tokens))

    def pace(self, now: float) -> Pace:
        steps = [(ms, running) for at, ms, running in self.steps if at > now - _WINDOW]
        streams = [rate for at, rate in self.streams if at > now - _WINDOW]
        return Pace(
            step_ms=median(ms for ms, _ in steps) if len(steps) >= _FEWEST else None,
            batch=median(running for _, running in steps) if steps else 0.0,
            stream=median(streams) if len(streams) >= _FEWEST else None,
            prompts=self._prompts(now),
        )

    def _prompts(self, now: float) -> float | None:
        seconds, computed = 0.0, 0
        for at, busy, tokens in reversed(self.parts):
            if seconds >= _BUSY or at < now - _OLD:
                break
            seconds, computed = seconds + busy, computed + tokens
        if seconds <= _LEAST_BUSY or computed < _LEAST_TOKENS:
            return None
        return computed / seconds


class Paces:
    """Takes what is heard of workers, by their ids."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._where: dict[Prompt, str] = {}  # prompts that are being computed

    def stepped(self, id: str, at: float, step_ms: float, running: int) -> None:
        """A worker has reported its last step."""
        if running and step_ms:
            self._of(id).steps.append((at, step_ms, running))

    def streamed(self, id: str, at: float, rate: float) -> None:
        """One of its streams got so many tokens per second since the last time."""
        if id and rate:
            self._of(id).streams.append((at, rate))

    def computed(
        self, id: str, prompt: Prompt, at: float, computed: int, total: int, cached: int = 0
    ) -> None:
        """It has so many tokens of a prompt, of which it did not compute ``cached``. First as the
        prompt is placed there: of a short one nothing more is heard before its first token."""
        if self._where.get(prompt, id) != id:  # it is computed elsewhere
            self.left(prompt)
        self._of(id).computed(prompt, at, computed, total, cached)
        self._where[prompt] = id

    def begun(self, prompt: Prompt, at: float, total: int) -> None:
        """Its first token is here, so all of it is computed."""
        id = self._where.get(prompt, "")
        if id in self._seen and prompt in self._seen[id].under:
            self.computed(id, prompt, at, total, total)

    def left(self, prompt: Prompt) -> None:
        """Nobody computes it any more."""
        if (seen := self._seen.get(self._where.pop(prompt, ""))) is not None:
            seen.under.pop(prompt, None)

    def keep(self, ids: Iterable[str]) -> None:
        """Forget all others: they have left."""
        for id in self._seen.keys() - set(ids):
            del self._seen[id]

    def forget(self) -> None:
        self._seen.clear()
        self._where.clear()

    def verdicts(self, workers: Iterable[live.Worker], now: float) -> dict[str, live.Verdict]:
        """Of the workers that stand out, by id."""
        sides: dict[tuple[str, ...], list[tuple[str, Pace]]] = {}
        for worker in workers:
            if worker.id is not None and worker.roles and worker.state == "healthy":
                one = (worker.id, self._of(worker.id).pace(now))
                sides.setdefault(tuple(worker.roles), []).append(one)
        return {
            id: verdict
            for roles, side in sides.items()
            for id, verdict in self._side(roles, side).items()
        }

    def _side(self, roles: Sequence[str], side: list[tuple[str, Pace]]) -> dict[str, live.Verdict]:
        others = _Others([pace for _, pace in side])
        found: dict[str, live.Verdict] = {}
        for id, pace in side:
            seen = self._of(id)
            verdict, least = None, _BACK if seen.slow else SLOW
            if "decode" in roles:
                verdict = others.by_tokens(pace, least)
            if verdict is None and "prefill" in roles:
                verdict = others.by_prompts(pace, least)
            seen.slow = verdict is not None and verdict.kind == "slow"
            if verdict is not None:
                found[id] = verdict
        return found

    def _of(self, id: str) -> _Seen:
        return self._seen.setdefault(id, _Seen())


class _Others:
    """The workers of a side, to set each beside the middle one of the others."""

    def __init__(self, paces: Sequence[Pace]) -> None:
        self._steps = sorted(pace.step_ms for pace in paces if pace.step_ms is not None)
        self._batches = sorted(pace.batch for pace in paces if pace.step_ms is not None)
        self._streams = sorted(pace.stream for pace in paces if pace.stream is not None)
        self._prompts = sorted(pace.prompts for pace in paces if pace.prompts is not None)

    def by_tokens(self, pace: Pace, least: float) -> live.Verdict | None:
        """By its steps, else by what its streams get: it may be held up between steps."""
        found: live.Verdict | None = None
        step, steps = pace.step_ms, _without(self._steps, pace.step_ms)
        stream, streams = pace.stream, _without(self._streams, pace.stream)
        if step and steps and step > least * steps and step - steps > _ALIKE_MS:
            text = f"step {_milliseconds(step)}, others {_milliseconds(steps)}"
            found = live.Verdict(kind="slow", times=round(step / steps, 1), text=text)
        elif stream and streams and least * stream < streams:
            text = f"{_number(stream)} tokens/s a stream, others {_number(streams)}"
            found = live.Verdict(kind="slow", times=round(streams / stream, 1), text=text)
        batches = _without(self._batches, pace.batch)
        if found and batches is not None and pace.batch > SLOW * batches + _ALIKE_BATCH:
            text = f"{_number(pace.batch)} sequences, others {_number(batches)}"
            return live.Verdict(kind="busy", times=found.times, text=text)
        return found

    def by_prompts(self, pace: Pace, least: float) -> live.Verdict | None:
        speed, speeds = pace.prompts, _without(self._prompts, pace.prompts)
        if not speed or not speeds or least * speed > speeds:
            return None
        text = f"{_number(speed)} prompt tokens/s, others {_number(speeds)}"
        return live.Verdict(kind="slow", times=round(speeds / speed, 1), text=text)


def _without(values: Sequence[float], one: float | None) -> float | None:
    """The median of ordered ``values`` less ``one`` of them; None when that leaves nothing."""
    left = len(values) - 1
    if left < 1 or one is None:
        return None
    out, middle = bisect_left(values, one), ((left - 1) // 2, left // 2)
    return sum(values[at if at < out else at + 1] for at in middle) / 2


def _milliseconds(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 10 else f"{ms:.0f} ms"


def _number(number: float) -> str:
    return f"{number:.1f}" if number < 10 and number % 1 else f"{number:,.0f}"
