"""What was seen of each system at each rate, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.statistics import Estimate, Measured, best
from bench.peers.systems import VLLM
from bench.records import Param, Record

_TOLD = ("attained", "goodput", "output", "TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "ITL p99")


@dataclass(frozen=True, slots=True)
class Tried:
    """A system at a rate."""

    system: str
    rate: float  #: requests/s
    load: str  #: what was asked, and on which machine
    measured: Measured
    estimates: Sequence[Estimate]

    def __getitem__(self, name: str) -> Estimate | None:
        return next((one for one in self.estimates if one.name == name), None)

    @property
    def attained(self) -> float:
        """0 where nothing was answered, NaN where it cannot be told."""
        found = self["attained"]
        if found is None:
            return 0.0
        return math.nan if found.doubt else found.value


def evaluate(tried: Sequence[Tried], wanted: float, of: str) -> list[Record]:
    """What was seen at each rate, and the highest that each system held; ``of`` says of what."""
    made: list[Record] = []
    for one in tried:
        params: dict[str, Param] = {"system": one.system, "rate": one.rate}
        for name in _TOLD:
            value = one[name]
            if value is not None and not value.doubt:
                made.append(Record(name, value.value, value.unit, params))
        if (share := one["attained"]) is not None and not share.doubt:
            low, high = share.interval
            made.append(Record("attained low", low, "ratio", params))
            made.append(Record("attained high", high, "ratio", params))
    held = highest(tried, wanted)
    told: dict[str, Param] = {"of": of}
    for system, rate in held.items():
        made.append(Record("held", rate, "1/s", {"system": system, **told}))
        if held.get(VLLM):
            made.append(Record("over vLLM", rate / held[VLLM], "ratio", {"system": system, **told}))
    return made


def highest(tried: Sequence[Tried], wanted: float) -> dict[str, float]:
    """By system: the highest rate up to which enough answers are within the objectives; 0: none."""
    return {
        system: best({t.rate: t.attained for t in tried if t.system == system}, wanted) or 0.0
        for system in dict.fromkeys(one.system for one in tried)
    }
