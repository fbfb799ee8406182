"""What a run has shown, as text; and what of it must not be."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.load import NOTABLE, Gap, Outcome
from tests.chaos.run import Result, Struck

#: A process has met everything once after this share of a run, and should grow no more.
_WARM = 0.4
#: Seconds between a fault and the last token before the silence that it may have caused.
_NEAR = 0.5
GROWTH_MB, GROWTH_DESCRIPTORS = 40.0, 16


def failures(result: Result) -> list[str]:
    """Streams that were not exact or ended with an error, what was leaked, and what has grown."""
    streams = [str(outcome) for outcome in result.outcomes if outcome.wrong or outcome.error]
    return [*streams, *result.leaks, *_grown(result)]


def render(result: Result) -> str:
    streams, completed = result.outcomes, _completed(result)
    seconds = result.ended - result.began
    return "\n".join(
        [
            f"{len(streams)} streams, {len(result.struck)} faults, {result.deaths} restarts in "
            f"{seconds:.0f} s",
            f"  {len(completed)} completed, of which {sum(not o.differs for o in completed)} as "
            f"undisturbed; {sum(o.left for o in streams)} clients went away; "
            f"{sum(bool(o.error) for o in streams)} errors",
            f"  {sum(o.moved for o in streams)} times a client lost its gateway or found none, "
            f"{sum(o.resumed for o in streams)} times another gave the rest of its answer, "
            f"{sum(o.refused for o in streams)} times one refused before anything was begun",
            f"  placed again: {_counted(result.migrations)}",
            f"  first token after {_spread([o.first - o.began for o in completed if o.first])}",
            f"  longest silence of a stream: {_spread([o.longest for o in completed])}",
            f"  silences of more than {NOTABLE:g} s, by the fault that came when they began:",
            *_by_kind(result),
            *_held(result),
            *(f"  WRONG: {failure}" for failure in failures(result)),
        ]
    )


def _completed(result: Result) -> list[Outcome]:
    return [o for o in result.outcomes if not o.left and not o.error]


def _by_kind(result: Result) -> list[str]:
    """Notable silences within streams by the fault that came nearest to their beginning."""
    found: dict[str, list[float]] = {}
    for outcome in result.outcomes:
        for gap in outcome.gaps:
            found.setdefault(_cause(gap, result.struck), []).append(gap.seconds)
    return [
        f"    {name:13} x{len(all_):<4} {_spread(all_)}" for name, all_ in sorted(found.items())
    ]


def _cause(gap: Gap, struck: Sequence[Struck]) -> str:
    """Only likely: faults overlap, and full caches preempt all the time."""
    near = [s for s in struck if abs(s.began - gap.began) <= _NEAR]
    if not near:
        return "no fault near"
    strike = min(near, key=lambda s: abs(s.began - gap.began)).strike
    return f"{strike.kind} {strike.target[0]}"


def _held(result: Result) -> list[str]:
    """Of the processes that are never killed: memory and descriptors, when warm and at the end."""
    if not result.samples:
        return []
    warm, last = result.samples[int(_WARM * len(result.samples))], result.samples[-1]
    return [
        f"  {name}: {warm.resources[name].resident_mb:.0f} -> {end.resident_mb:.0f} MB, "
        f"{warm.resources[name].descriptors} -> {end.descriptors} descriptors"
        for name, end in last.resources.items()
    ]


def _grown(result: Result) -> list[str]:
    if not result.samples:
        return []
    warm, last = result.samples[int(_WARM * len(result.samples))], result.samples[-1]
    return [
        f"{name} has grown from {before} to {end}"
        for name, end in last.resources.items()
        for before in (warm.resources[name],)
        if end.resident_mb > before.resident_mb + GROWTH_MB
        or end.descriptors > before.descriptors + GROWTH_DESCRIPTORS
    ]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:g}" for name, count in sorted(counts.items())) or "nothing"


def _spread(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {ordered[-1]:.2f} s"
