"""What came of a simulated run."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.records import Param, Record
from bench.simulate.gaps import Gaps

F64 = NDArray[np.float64]
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Seconds that a good answer may take at most."""

    ttft: float
    tpot: float


def _times() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Outcome:
    """Of all requests; times are in seconds."""

    arrived: array[float] = field(default_factory=_times)  #: of those that were answered
    ttft: array[float] = field(default_factory=_times)
    tpot: array[float] = field(default_factory=_times)  #: 0 for an answer of one token
    gaps: Gaps = field(default_factory=Gaps)
    refused: Counter[str] = field(default_factory=Counter)  #: by error code
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  #: of these
    output_tokens: int = 0
    local: int = 0  #: prompts computed on a decode worker
    asked: int = 0
    span: float = 0.0  #: from the first arrival to the last
    ended: float = 0.0
    queue: int = 0  #: prompt tokens waiting for their first token, at most
    line: int = 0  #: requests waiting for a place, at most
    busy: Mapping[str, float] = field(default_factory=dict)  #: share of the time, by role
    network: float = 0.0  #: share of the time that the busiest port carries KV

    def answered(self, arrived: float, ttft: float, tpot: float) -> None:
        self.arrived.append(arrived)
        self.ttft.append(ttft)
        self.tpot.append(tpot)

    def good(self, slo: Slo) -> int:
        """Requests that were answered in time."""
        ttft, tpot = np.frombuffer(self.ttft), np.frombuffer(self.tpot)
        return int(((ttft <= slo.ttft) & (tpot <= slo.tpot)).sum()) if len(ttft) else 0

    def attained(self, slo: Slo) -> float:
        """Share of all that were asked."""
        return self.good(slo) / self.asked if self.asked else 0.0

    def records(self, slo: Slo, params: Mapping[str, Param]) -> list[Record]:
        def record(name: str, value: float, unit: str) -> Record:
            return Record(name, value, unit, params)

        made = list[Record]()
        for name, times in (("TTFT", self.ttft), ("TPOT", self.tpot)):
            made += [record(f"{name} p{p}", v, "ms") for p, v in _percentiles(times)]
        made += [record(f"ITL p{p}", 1e3 * self.gaps.percentile(p), "ms") for p in _PERCENTILES]
        span = self.span or self.ended or 1.0
        made += [
            record("attained", self.attained(slo), "ratio"),
            record("goodput", self.good(slo) / span, "1/s"),
            record("output", self.output_tokens / (self.ended or 1.0), "tokens/s"),
            record("hit", self.cached_tokens / max(1, self.prompt_tokens), "ratio"),
            record("queue", self.queue, "tokens"),
            record("line", self.line, "requests"),
            record("preempted", self.preempted, "requests"),
            record("refused", self.refused.total(), "requests"),
            record("local", self.local, "requests"),
            record("busiest port", self.network, "ratio"),
        ]
        return made + [record(f"{role} busy", s, "ratio") for role, s in self.busy.items()]


def _percentiles(seconds: Iterable[float]) -> list[tuple[int, float]]:
    """In milliseconds, by nearest rank."""
    values: F64 = np.fromiter(seconds, dtype=np.float64)
    if not len(values):
        return [(p, 0.0) for p in _PERCENTILES]
    cuts = np.percentile(values, _PERCENTILES, method="inverted_cdf")
    return [(p, 1e3 * float(cut)) for p, cut in zip(_PERCENTILES, cuts, strict=True)]
