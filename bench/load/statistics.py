"""What a level's answers come to: percentiles, rates, goodput, each with its interval, or with the
reason why it cannot be told.

    TTFT   from sending a request to the first event that shows something of its answer
    ITL    between one such event and the next
    TPOT   from the first to the last of them, by the tokens after the first
    E2E    from sending a request to the end of its answer

Intervals are of a bootstrap over requests in blocks of neighbours (circular, n^(1/3) long: Politis
and Romano 1992), since requests that meet in a queue are no independent draws. A percentile is the
smallest value that so many do not exceed (nearest rank).

A latency is refused where the generator itself may have made it: where the same percentile of its
own lag, or of its lateness in sending, is more than a share of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bench.load.raw import Answer, Level

F64 = NDArray[np.float64]
Ints = NDArray[np.int32] | NDArray[np.int64]

LATENCIES = ("TTFT", "TPOT", "ITL", "E2E")
PERCENTILES = (50, 90, 95, 99)
#: Those that begin when a request is sent.
_FROM_SENDING = ("TTFT", "E2E")
#: Resamples of a bootstrap.
DRAWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Seconds that an answer may take; None: any time."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        named = {"TTFT": self.ttft, "TPOT": self.tpot, "E2E": self.e2e}
        return {name: limit for name, limit in named.items() if limit is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """When the generator is believed."""

    share: float  #: its own part in a latency, at most
    lag: float  #: seconds: 99 of 100 times its loop is to be no later than this


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and how it may have come out otherwise."""

    name: str
    value: float
    unit: str
    draws: F64  #: the number in each resample
    doubt: str = ""  #: why it is no measurement; empty: it is

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        low, high = np.percentile(self.draws, (2.5, 97.5))
        return float(low), float(high)


class Sample:
    """Values, each of one of so many requests, that are resampled with their requests."""

    def __init__(self, values: F64, owners: Ints) -> None:
        order = np.argsort(values, kind="stable")
        self.values: F64 = values[order]
        self._owners: Ints = owners[order]

    def __len__(self) -> int:
        return len(self.values)

    def quantiles(self, shares: Sequence[float], counts: Ints | None = None) -> F64:
        """For each share (0 to 1) the smallest value that so many do not exceed, where the values
        of request i count ``counts[i]`` times. NaN where there are none."""
        if counts is None:
            counts = np.ones(int(self._owners.max(initial=-1)) + 1, dtype=np.int64)
        total = np.cumsum(counts[self._owners])
        if not len(total) or not total[-1]:
            return np.full(len(shares), math.nan)
        ranks = np.maximum(1, np.ceil(np.array(shares) * total[-1] - 1e-9))
        found: F64 = self.values[np.searchsorted(total, ranks)]
        return found

    def mean(self, counts: Ints) -> float:
        """Likewise."""
        weights = counts[self._owners]
        whole = int(weights.sum())
        return float((weights * self.values).sum() / whole) if whole else math.nan


class Measured:
    """A level's answers as arrays; failed ones count, but have no latencies."""

    def __init__(self, level: Level) -> None:
        answers = level.answers
        self.level = level
        self.good = np.array([one.good for one in answers], dtype=bool)
        self.due = np.array([one.due for one in answers])
        self.tokens = np.array([one.tokens for one in answers], dtype=np.int64) * self.good
        self.seconds = max((one.ended for one in answers), default=0.0)
        ends = np.array([one.ended for one in answers])
        #: Seconds from the end of another answer to the end of each: all of them together are the
        #: whole, so that what is per second can be resampled with its seconds.
        self.gaps: F64 = np.diff(np.sort(ends), prepend=0.0)[np.argsort(np.argsort(ends))]
        self.lag: F64 = np.sort(np.array(level.lag))
        self.lateness: F64 = np.sort(np.array([one.sent - one.due for one in answers]))
        #: By request; NaN for those that have none.
        self.each: dict[str, F64] = {
            "TTFT": _each(level, lambda one: one.ticks[0] - one.sent),
            "TPOT": _each(level, _per_token),
            "E2E": _each(level, lambda one: one.ended - one.sent),
        }

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """By latency."""
        found = {}
        for name, values in self.each.items():
            there = np.flatnonzero(~np.isnan(values))
            found[name] = Sample(values[there], there)
        good = [(n, np.diff(one.ticks)) for n, one in enumerate(self.level.answers) if one.good]
        gaps = [each for _, each in good]
        owners = [np.full(len(each), n) for n, each in good]
        none = np.empty(0)
        found["ITL"] = Sample(
            np.concatenate(gaps or [none]), np.concatenate(owners or [none]).astype(np.int64)
        )
        return {name: found[name] for name in LATENCIES}

    def met(self, slo: Slo, scale: float = 1.0) -> NDArray[np.bool_]:
        """Which requests were answered within ``scale`` times the objectives. An answer of one
        token has no TPOT, and meets any."""
        met = self.good.copy()
        for name, limit in slo.limits.items():
            values = self.each[name]
            met &= np.isnan(values) | (values <= limit * scale)
        return met

    def resamples(self, seed: int) -> Ints:
        """How often each request is in each of ``DRAWS`` resamples."""
        count = len(self.good)
        length = max(1, round(count ** (1 / 3)))
        rng = np.random.default_rng(seed)
        found = np.empty((DRAWS, count), dtype=np.int32)
        for row in found:
            starts = rng.integers(0, count, -(-count // length))
            picked = (starts[:, None] + np.arange(length)).reshape(-1)[:count] % count
            row[:] = np.bincount(picked, minlength=count)
        return found

    def doubt(self, name: str, share: float | None, value: float, trust: Trust) -> str:
        """Why the quantile ``share`` of a latency, or its mean, could not be measured here."""
        if not len(self.lag):
            return "nobody looked at the generator's own lag"
        if (worst := _at(self.lag, 0.99)) > trust.lag:
            return (
                f"the generator's loop was {worst * 1e3:.1f} ms late (p99), more than "
                f"{trust.lag * 1e3:g} ms"
            )
        limit = trust.share * value
        if name == "TPOT":  # both ends may be off, but that is shared by all the gaps between
            limit *= max(1.0, float(np.median(self.tokens[self.good])) - 1) / 2
        if (lag := _at(self.lag, share)) > limit:
            return f"the generator's own lag is {lag * 1e3:.2f} ms there"
        if name in _FROM_SENDING and (late := _at(self.lateness, share)) > trust.share * value:
            return f"requests were sent {late * 1e3:.2f} ms late there"
        return ""


def _per_token(answer: Answer) -> float:
    """NaN for an answer of one token."""
    gaps = answer.tokens - 1
    return (answer.ticks[-1] - answer.ticks[0]) / gaps if gaps > 0 else math.nan


def _each(level: Level, latency: Callable[[Answer], float]) -> F64:
    return np.array([latency(one) if one.good else math.nan for one in level.answers])


def _at(ordered: F64, share: float | None) -> float:
    if share is None:
        return float(ordered.mean())
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])


def estimate(measured: Measured, slo: Slo, trust: Trust, seed: int = 0) -> list[Estimate]:
    """Everything that is told of a level. None of it where there is no answer at all."""
    if not measured.good.any():
        return []
    counts = measured.resamples(seed)
    return [
        *_rates(measured, slo, trust, counts),
        *(one for name in LATENCIES for one in _latency(measured, name, trust, counts)),
    ]


def _rates(measured: Measured, slo: Slo, trust: Trust, counts: Ints) -> list[Estimate]:
    good, met = measured.good.astype(np.float64), measured.met(slo).astype(np.float64)
    seconds, asked = measured.gaps, np.ones(len(met))
    doubts = [
        f"{name}: {doubt}"
        for name, limit in slo.limits.items()
        if (doubt := measured.doubt(name, 0.99, limit, trust))
    ]

    def total(name: str, values: F64, over: F64, unit: str, doubt: str = "") -> Estimate:
        whole = counts @ over
        draws = (counts @ values)[whole > 0] / whole[whole > 0]
        return Estimate(name, float(values.sum() / over.sum()), unit, draws, doubt)

    found = [
        total("answered", good, asked, "ratio"),
        total("throughput", good, seconds, "1/s"),
        total("output", measured.tokens * 1.0, seconds, "tokens/s"),
    ]
    if not slo.limits:
        return found
    return [
        *found,
        total("attained", met, asked, "ratio", *doubts[:1]),
        total("goodput", met, seconds, "1/s", *doubts[:1]),
        total("token goodput", met * measured.tokens, seconds, "tokens/s", *doubts[:1]),
    ]


def _latency(measured: Measured, name: str, trust: Trust, counts: Ints) -> list[Estimate]:
    """Mean and percentiles, in milliseconds."""
    sample = measured.samples[name]
    if not len(sample):
        return []
    shares = [percentile / 100 for percentile in PERCENTILES]
    alike = np.ones(counts.shape[1], dtype=np.int64)
    values = [sample.mean(alike), *sample.quantiles(shares, alike)]
    draws = np.array([[sample.mean(row), *sample.quantiles(shares, row)] for row in counts])
    draws = draws[~np.isnan(draws[:, 0])]  # a resample may happen to hold no value at all
    kinds = ["mean", *(f"p{percentile}" for percentile in PERCENTILES)]
    return [
        Estimate(
            f"{name} {kind}",
            float(value) * 1e3,
            "ms",
            draws[:, column] * 1e3,
            measured.doubt(name, share, float(value), trust),
        )
        for column, (kind, share, value) in enumerate(
            zip(kinds, [None, *shares], values, strict=True)
        )
    ]


def generator(measured: Measured) -> dict[str, tuple[float, str]]:
    """The generator's own part: name -> (value, unit)."""
    found = {}
    if len(measured.lateness):
        found["lateness p99"] = (_at(measured.lateness, 0.99) * 1e3, "ms")
        found["lateness max"] = (float(measured.lateness[-1]) * 1e3, "ms")
    if len(measured.lag):
        found["lag p50"] = (_at(measured.lag, 0.5) * 1e3, "ms")
        found["lag p99"] = (_at(measured.lag, 0.99) * 1e3, "ms")
    if measured.level.cpu:
        found["busiest sender"] = (max(measured.level.cpu), "ratio")
    return found


def cached(level: Level) -> float | None:
    """The share of prompt tokens that the endpoint says it had cached; None: it does not say."""
    told = [one for one in level.answers if one.good and one.prompt and one.cached is not None]
    prompt = sum(one.prompt or 0 for one in told)
    return sum(one.cached or 0 for one in told) / prompt if prompt else None


def imbalance(level: Level) -> dict[str, float]:
    """By role: the most that a worker had to do, as a multiple of the mean, over the whole run."""
    found = {}
    for role, looks in level.work.items():
        seen = [amounts for amounts in looks if amounts]
        mean = sum(sum(amounts) / len(amounts) for amounts in seen)
        if seen:
            found[role] = sum(max(amounts) for amounts in seen) / mean if mean else 1.0
    return found


def best(attained: Mapping[float, float], wanted: float) -> float | None:
    """The highest load up to which all attain what is wanted; None: not even the lowest does.

    NaN is the attainment that could not be measured.
    """
    found = None
    for value in sorted(attained):
        if not attained[value] >= wanted:  # which NaN is not, either
            break
        found = value
    return found


def scales() -> Sequence[float]:
    """Multiples of the objectives at which attainment is shown."""
    return [2.0 ** (step / 4) for step in range(-12, 13)]
