"""Whole requests, one at a time: what it costs them that prompts are computed elsewhere.

For each length the colocated worker and each transport take turns, round after round; every prompt
is new. Values are medians over the rounds; a ratio is the median of each round's own ratio.

    tail           from when the last layer's KV of the last chunk is there to when it is written
    alone          the same KV, all of it there to begin with, from the first offer to the end
    tail, pieces   the tail, in times that one layer of one chunk takes alone
    hidden         the part of the time alone that is not in the tail
    beyond step    the gap from first to second token, less a decode step, less what of the KV
                   came after the first token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from bench.cluster import Answer
from bench.course import Course
from bench.fleet import BATCH, Fleet
from bench.records import Param, Record

COLOCATED = "colocated"
#: Longest prompts that are also handed over beside a running batch.
BATCH_UP_TO = 2048

_MS = 1e3


@dataclass(frozen=True, slots=True)
class Round:
    """What was measured of one transport in one round."""

    handed: Answer
    alone: Answer
    beside: Answer | None  #: handed over beside a running batch


@dataclass(slots=True)
class Series:
    """All rounds of one length."""

    tokens: int
    colocated: list[Answer] = field(default_factory=list)
    rounds: dict[str, list[Round]] = field(default_factory=dict)  #: by transport


async def measure(
    fleet: Fleet, lengths: Sequence[int], rounds: int, say: Callable[[str], None]
) -> list[Record]:
    """Every length (tokens). Raises PeerFailed."""
    await warm(fleet, min(lengths), max(lengths))
    series = []
    for tokens in lengths:
        say(f"requests of {tokens} tokens")
        series.append(await _series(fleet, tokens, rounds))
    courses = fleet.courses()
    return [record for one in series for record in evaluate(one, courses)]


async def warm(fleet: Fleet, shortest: int, longest: int) -> None:
    """A first request everywhere, and the decode workers' pools in use: it is not counted."""
    await fleet.colocate(shortest)
    for transport in fleet.decode:
        await fleet.hand_over(transport, shortest)
        await fleet.alone(transport, longest)


async def _series(fleet: Fleet, tokens: int, rounds: int) -> Series:
    made = Series(tokens, rounds={transport: [] for transport in fleet.decode})
    sides = [COLOCATED, *fleet.decode]
    for count in range(rounds):
        first = count % len(sides)  # no side always follows the same other
        for side in sides[first:] + sides[:first]:
            if side == COLOCATED:
                made.colocated.append(await fleet.colocate(tokens))
            else:
                made.rounds[side].append(await _round(fleet, side, tokens))
    return made


async def _round(fleet: Fleet, transport: str, tokens: int) -> Round:
    handed = await fleet.hand_over(transport, tokens)
    alone = await fleet.alone(transport, tokens)
    beside = None
    if tokens <= BATCH_UP_TO:
        async with fleet.batch(transport):
            beside = await fleet.hand_over(transport, tokens)
    return Round(handed, alone, beside)


def evaluate(series: Series, courses: dict[str, Course]) -> list[Record]:
    """The records of one length."""
    found: list[Record] = []

    def add(name: str, values: Sequence[float], unit: str, **params: Param) -> None:
        shared: dict[str, Param] = {"tokens": series.tokens}
        found.append(Record(name, median(values), unit, shared | params))

    def milliseconds(name: str, values: Sequence[float], path: str) -> None:
        add(name, [value * _MS for value in values], "ms", path=path)

    base = series.colocated
    milliseconds("TTFT", [one.ttft for one in base], COLOCATED)
    milliseconds("prefill", [one.timings.prefill for one in base], COLOCATED)
    for transport, rounds in series.rounds.items():
        handed = [one.handed for one in rounds]
        course = [courses[one.request_id] for one in handed]
        alone = [courses[one.alone.request_id].seconds for one in rounds]
        tails = [one.tail for one in course]
        pieces = [one.layers * one.chunks for one in course]
        both = list(zip(handed, base, strict=True))
        milliseconds("TTFT", [one.ttft for one in handed], transport)
        milliseconds("prefill", [one.timings.prefill for one in handed], transport)
        add("TTFT / colocated", [a.ttft / b.ttft for a, b in both], "ratio", path=transport)
        slower = [a.timings.prefill / b.timings.prefill for a, b in both]
        add("prefill / colocated", slower, "ratio", path=transport)
        milliseconds("gap", [one.gaps[0] for one in handed], transport)
        milliseconds("step", [step(one) for one in handed], transport)
        beyond = [one.gaps[0] - step(one) - one.timings.transfer_tail for one in handed]
        milliseconds("beyond step", beyond, transport)
        milliseconds("alone", alone, transport)
        milliseconds("tail", tails, transport)
        milliseconds("after compute", [one.tail_after_compute for one in course], transport)
        in_pieces = [
            tail / (whole / count) for tail, whole, count in zip(tails, alone, pieces, strict=True)
        ]
        add("tail, pieces", in_pieces, "ratio", path=transport)
        hidden = [max(0.0, 1 - tail / whole) for tail, whole in zip(tails, alone, strict=True)]
        add("hidden", hidden, "ratio", path=transport)
        # Steps too quick for the tokens to come one by one cannot be told: a small model's.
        beside = [one.beside for one in rounds if one.beside is not None and step(one.beside)]
        if beside:
            batch: dict[str, Param] = {"path": transport, "batch": BATCH}
            add("gap", [one.gaps[0] * _MS for one in beside], "ms", **batch)
            add("step", [step(one) * _MS for one in beside], "ms", **batch)
            add("gap, steps", [one.gaps[0] / step(one) for one in beside], "ratio", **batch)
    return found


def step(answer: Answer) -> float:
    """Seconds of a decode step, as the later tokens of an answer show it: on average, since the
    tokens of quick steps may come several at a time."""
    return fmean(answer.gaps[1:])
