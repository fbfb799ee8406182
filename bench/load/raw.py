"""What came of a run, as it was seen: one JSON line per answer. Statistics are derived later.

    {"run": {"url": ..., "model": ..., "machine": ..., ...}}         what was asked for
    {"level": {"label": "4/s", "kind": "rate", "value": 4.0, ...}}   what follows belongs to it
    {"answer": {"due": ..., "sent": ..., "ticks": [...], ...}}       one request
    {"lag": [...]}                                                   of a sender's event loop
    {"work": {"prefill": [...], "decode": [...]}}                    of a Baton fleet's workers
    {"cpu": 0.31}                                                    a sender's share of a core

Times are seconds from the beginning of the level, on the monotonic clock; a lag is in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.load.workload import Json
from bench.records import Param

OK = "ok"


class RawError(ValueError):
    """A file is none of ours; says which line, and why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    due: float  #: when it was to be sent
    sent: float
    ticks: tuple[float, ...]  #: when each event came that showed something of the answer
    ended: float
    tokens: int  #: of the answer; as many as ticks where the endpoint says nothing (no usage)
    prompt: int | None = None  #: tokens, as the endpoint counts them
    cached: int | None = None  #: of these
    status: str = OK  #: or why it is no answer

    @property
    def good(self) -> bool:
        return self.status == OK


@dataclass(slots=True)
class Level:
    """Load of one kind and size."""

    label: str
    kind: str  #: "rate" (requests/s), "concurrency" or "speed" (of a trace)
    value: float
    reusable: float | None = None  #: share of prompt tokens that one endless cache would have had
    answers: list[Answer] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    work: dict[str, list[list[float]]] = field(default_factory=dict)  #: by role, look by look
    cpu: list[float] = field(default_factory=list)  #: of each sender

    def head(self) -> dict[str, Json]:
        return {
            "label": self.label,
            "kind": self.kind,
            "value": self.value,
            "reusable": self.reusable,
        }


@dataclass(slots=True)
class Run:
    params: dict[str, Param]
    levels: list[Level] = field(default_factory=list)


class Writer:
    """Writes a file as things come in, so that what was seen is not lost when a run is cut off."""

    def __init__(self, path: Path, params: Mapping[str, Param]) -> None:
        """Raises OSError."""
        self._file = path.open("w", encoding="utf-8")
        self.put({"run": dict(params)})

    def level(self, level: Level) -> None:
        self.put({"level": level.head()})

    def put(self, line: Mapping[str, object]) -> None:
        self.write(json.dumps(line) + "\n")

    def write(self, line: str) -> None:
        """As it came, with its end."""
        self._file.write(line)

    def close(self) -> None:
        self._file.close()


def line(answer: Answer) -> str:
    """As it stands in the file. Times are rounded to a microsecond."""
    fields = asdict(answer)
    for name in ("due", "sent", "ended"):
        fields[name] = round(fields[name], 6)
    fields["ticks"] = [round(tick, 6) for tick in answer.ticks]
    return json.dumps({"answer": fields})


def read(path: Path) -> Run:
    """Raises RawError, OSError."""
    run: Run | None = None
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                ((kind, said),) = json.loads(text).items()
                if run is None:
                    run = Run(_params(kind, said))
                elif kind == "level":
                    run.levels.append(Level(**said))
                else:
                    _add(run.levels[-1], kind, said)
            except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
                raise RawError(f"{path}: line {number} is not of a run: {error!r}") from None
    if run is None:
        raise RawError(f"{path} is empty")
    for level in run.levels:
        level.answers.sort(key=lambda answer: answer.due)
    return run


def _params(kind: str, said: dict[str, Param]) -> dict[str, Param]:
    if kind != "run":
        raise ValueError(f"a file begins with run, not with {kind}")
    return said


def _add(level: Level, kind: str, said: object) -> None:
    if kind == "answer" and isinstance(said, dict):
        level.answers.append(Answer(**said | {"ticks": tuple(said["ticks"])}))
    elif kind == "lag" and isinstance(said, list):
        level.lag += said
    elif kind == "work" and isinstance(said, dict):
        for role, amounts in said.items():
            level.work.setdefault(role, []).append(amounts)
    elif kind == "cpu" and isinstance(said, float):
        level.cpu.append(said)
    else:
        raise ValueError(f"nothing is called {kind}")
