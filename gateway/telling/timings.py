"""Where the time of a request went, for its own answer: ``x-baton-timings: 1``.

``docs/timings.md`` says what each figure means. All are milliseconds, by the gateway's clock, but
for those that a worker measured; null is what nobody said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from baton.generation import Progress
from baton.generation import Timings as Phases
from baton.live import short
from gateway.telling.gaps import milliseconds
from gateway.telling.tale import Ending, Leaving, Placing, Tale

#: The header that asks, what it must say, and the field that answers.
ASK, ASKED = "x-baton-timings", "1"
FIELD = "baton_timings"

#: What is rendered as JSON.
Rendered: TypeAlias = dict[str, object]


@dataclass(slots=True)
class _Attempt:
    placing: Placing
    phases: Phases | None = None
    transport: str = ""
    ended_at: float | None = None
    ends: list[Rendered] = field(default_factory=list)


class Timings:
    """Hears of one request, and keeps a few hundred numbers however long its answer is."""

    curious = True

    def __init__(self, tale: Tale) -> None:
        self._tale = tale
        self._attempts: list[_Attempt] = []
        self._running: dict[tuple[int, int], _Attempt] = {}  #: by attempt and choice

    def queued(self, at: float) -> None:
        """Arrival is what counts."""

    def placed(self, placing: Placing) -> None:
        attempt = _Attempt(placing)
        self._attempts.append(attempt)
        for choice in placing.choices:
            self._running[placing.attempt, choice] = attempt

    def progressed(self, attempt: int, progress: Progress, at: float) -> None:
        running = self._running.get((attempt, progress.key.choice_index))
        if running is not None:
            running.transport = progress.transport
            running.phases = progress.timings or running.phases

    def begun(self, choice: int, attempt: int, at: float) -> None:
        """The tale knows."""

    def left(self, leaving: Leaving) -> None:
        attempt = self._running.pop((leaving.attempt, leaving.choice), None)
        if attempt is None:
            return
        attempt.ended_at = leaving.at
        attempt.phases = leaving.timings or attempt.phases
        attempt.ends.append(
            {
                "choice": leaving.choice,
                "reason": leaving.reason,
                "tokens": self._tale.tokens[leaving.choice],
            }
        )

    def ended(self, ending: Ending) -> None:
        """The answer has gone by then."""

    def rendered(self, now: float) -> Rendered:
        """As it goes into the answer, once every attempt has ended."""
        placings = [attempt.placing for attempt in self._attempts]
        phases = [attempt.phases for attempt in self._attempts if attempt.phases is not None]
        tale = self._tale
        firsts = tale.first_at.values()
        lasts = [arrivals.last or 0.0 for arrivals in tale.arrivals.values()]
        return {
            "queue_ms": milliseconds(sum(p.at - p.since for p in placings)),
            "placement_ms": milliseconds(sum(p.decided for p in placings)),
            **_phases(phases),
            "first_token_ms": self._since(min(firsts)) if firsts else None,
            "decode_ms": milliseconds(max(lasts) - min(firsts)) if firsts else None,
            "total_ms": self._since(now),
            "cached_tokens": tale.cached_tokens,
            "attempts": [self._attempt(attempt) for attempt in self._attempts],
            "choices": [self._choice(choice) for choice in tale.request.choices],
        }

    def _since(self, at: float) -> float:
        return milliseconds(at - self._tale.arrived)

    def _attempt(self, attempt: _Attempt) -> Rendered:
        placing, phases = attempt.placing, attempt.phases
        prefill = placing.place.prefill
        named = short(phases.prefill_instance_id) if phases is not None else ""
        return {
            "attempt": placing.attempt,
            "decode": short(placing.place.decode.instance_id),
            "prefill": named or (short(prefill.instance_id) if prefill is not None else None),
            "policy": placing.policy,
            "queue_ms": milliseconds(placing.at - placing.since),
            "placement_ms": milliseconds(placing.decided),
            "begins_ms": self._since(placing.at),
            "ends_ms": None if attempt.ended_at is None else self._since(attempt.ended_at),
            **_phases([] if phases is None else [phases]),
            "decode_cached_tokens": None if phases is None else phases.decode_cached_tokens,
            "prefill_cached_tokens": None if phases is None else phases.prefill_cached_tokens,
            "transport": attempt.transport or None,
            "ended": attempt.ends,
        }

    def _choice(self, index: int) -> Rendered:
        first, gaps = self._tale.first_at.get(index), self._tale.arrivals[index].gaps
        return {
            "choice": index,
            "first_token_ms": None if first is None else self._since(first),
            "tokens": self._tale.tokens[index],
            "gaps_ms": [milliseconds(gap) for gap in gaps.kept],
            "gaps": gaps.summary(),
        }


def _phases(phases: Sequence[Phases]) -> Rendered:
    """What workers measured, added up; null where none did."""
    if not phases:
        return dict.fromkeys(_MEASURED)
    transfer, tail = sum(p.transfer for p in phases), sum(_tail(p) for p in phases)
    return {
        "prefill_queue_ms": milliseconds(sum(p.queue for p in phases)),
        "prefill_ms": milliseconds(sum(p.prefill for p in phases)),
        "transfer_ms": milliseconds(transfer),
        "transfer_hidden_ms": milliseconds(transfer - tail),
        "transfer_not_hidden_ms": milliseconds(tail),
        "transfer_bytes": sum(p.transfer_bytes for p in phases),
    }


_MEASURED = (
    "prefill_queue_ms",
    "prefill_ms",
    "transfer_ms",
    "transfer_hidden_ms",
    "transfer_not_hidden_ms",
    "transfer_bytes",
)


def _tail(phases: Phases) -> float:
    """What of the transfer was not hidden; of all of it at most."""
    return min(phases.transfer, phases.transfer_tail)
