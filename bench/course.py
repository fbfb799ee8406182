"""The course of one hand-off, put together from what both ends have traced (baton/kv/trace.py)."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Step(NamedTuple):
    """Something happened to a layer: its KV of all positions below ``end`` (and maybe more)."""

    layer: int
    end: int
    at: float  #: seconds of ``time.monotonic``


@dataclass(frozen=True, slots=True)
class Part:
    """What was received at once: some blocks of one layer, and when. Seconds."""

    layer: int
    end: int
    computed: float
    sent: float | None  #: None where the decode side fetches it without asking
    received: float
    written: float


@dataclass(frozen=True, slots=True)
class Course:
    """One hand-off. Times are of ``time.monotonic``, seconds."""

    layers: int
    tokens: int
    computed: tuple[Step, ...]  #: each layer of each chunk, in order
    parts: tuple[Part, ...]  #: in the order of their arrival
    first_token: float  #: known to the prefill worker: all computing has ended

    @property
    def last_written(self) -> float:
        return max(part.written for part in self.parts)

    @property
    def tail(self) -> float:
        """From when the last layer's KV was there to when the last part was written."""
        return self.last_written - self.computed[-1].at

    @property
    def tail_after_compute(self) -> float:
        """What of it came after the whole prompt was computed; 0 when nothing did."""
        return max(0.0, self.last_written - self.first_token)

    @property
    def seconds(self) -> float:
        """From when the first KV was there to when the last part was written."""
        return self.last_written - self.computed[0].at

    @property
    def chunks(self) -> int:
        return len({step.end for step in self.computed})


def read(path: Path) -> dict[str, Course]:
    """Every hand-off that both ends have traced to its end, by request."""
    sides: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in path.read_text().splitlines():
        told = json.loads(line)
        sides[told["request"]][told["side"]] = told
    return {
        request: put_together(both["prefill"], both["decode"])
        for request, both in sides.items()
        if len(both) == 2 and _whole(both["decode"])
    }


def put_together(prefill: dict[str, Any], decode: dict[str, Any]) -> Course:
    """From the two lines of one hand-off that went through to its end."""
    computed = tuple(_steps(prefill, "computed"))
    by_layer = {layer: [step for step in computed if step.layer == layer] for layer, *_ in computed}
    sent = {(step.layer, step.end): step.at for step in _steps(prefill, "sent")}
    received = {(step.layer, step.end): step.at for step in _steps(decode, "received")}
    parts = [
        Part(
            layer,
            end,
            computed=_first_past(by_layer[layer], end),
            sent=sent.get((layer, end)),
            received=received.get((layer, end), at),  # a READ lands in its place
            written=at,
        )
        for layer, end, at in _steps(decode, "written")
    ]
    first_token = _steps(prefill, "first token")[0].at
    return Course(len(by_layer), prefill["end"], computed, tuple(parts), first_token)


class Written(NamedTuple):
    """So many tokens of one layer came into their blocks."""

    tokens: int
    at: float  #: seconds of ``time.monotonic``


def written(path: Path) -> dict[str, list[Written]]:
    """What each decode side has written, to the end or not, by request."""
    found: dict[str, list[Written]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if line["side"] == "decode":
            reached: dict[int, int] = {}
            rows = found[line["request"]] = []
            for layer, end, at in _steps(line, "written"):
                rows.append(Written(end - reached.get(layer, line["start"]), at))
                reached[layer] = end
    return found


def _steps(line: dict[str, Any], name: str) -> list[Step]:
    return [Step(layer, end, at) for event, layer, end, at in line["events"] if event == name]


def _first_past(steps: list[Step], end: int) -> float:
    """When the layer was computed up to ``end``."""
    return steps[bisect_left(steps, end, key=lambda step: step.end)].at


def _whole(decode: dict[str, Any]) -> bool:
    """Whether every layer was written to its end."""
    reached = {step.layer for step in _steps(decode, "written") if step.end == decode["end"]}
    return bool(reached) and reached == {step.layer for step in _steps(decode, "written")}
