"""What the hand-off is to show, and whether records show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from bench.records import Param, Record


@dataclass(frozen=True, slots=True)
class Goal:
    """Every record of that name is to be on the right side of a limit."""

    what: str
    name: str  #: of the records
    limit: float
    path: str = ""  #: of those records alone; empty: of every path, each for itself
    at_least: bool = False  #: the limit is the smallest that will do, not the largest
    where: Mapping[str, Param] = field(default_factory=dict)  #: of records with these parameters

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


#: First what transports are to reach, then requests, then their neighbours.
GOALS = (
    Goal("throughput over a bare gRPC stream's", "of bare grpc", 0.9, "grpc", at_least=True),
    Goal("throughput over memcpy's", "of memcpy", 0.5, "shm", at_least=True),
    Goal("throughput over NIXL's own best", "of bare nixl", 0.9, "nixl", at_least=True),
    Goal(
        "throughput over NIXL's own, block by block", "of nixl blocks", 0.9, "nixl", at_least=True
    ),
    Goal("TTFT over that of a colocated worker", "TTFT / colocated", 1.05, "shm"),
    Goal("TTFT over that of a colocated worker", "TTFT / colocated", 1.05, "nixl"),
    Goal("TTFT over that of a colocated worker", "TTFT / colocated", 1.10, "grpc"),
    Goal("first to second token, idle: beyond a step and the tail, ms", "beyond step", 2.0),
    Goal("first to second token beside a batch, in steps", "gap, steps", 2.0),
    Goal("tail, in times that a layer of a chunk takes alone", "tail, pieces", 1.5),
    Goal("KV still to come when the prompt is computed, ms", "after compute", 0.0),
    Goal("prefill over that without a hand-off", "prefill / colocated", 1.05),
    Goal("p99 between tokens beside a hand-off over that without", "p99 ratio", 1.05),
    Goal("memory in flight over its bound", "growth / bound", 1.0),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal on one path."""

    goal: Goal
    path: str
    worst: Record
    reached: int  #: records that reach it
    records: int


def judge(
    records: Sequence[Record], goals: Sequence[Goal] = GOALS, by: str = "path"
) -> list[Verdict]:
    """Every goal that there are records of, in order; ratios and times beyond are worst at last.

    ``by`` is the parameter that holds what a goal calls a path.
    """
    found: list[Verdict] = []
    for goal in goals:
        named = [
            record
            for record in records
            if record.name == goal.name and goal.where.items() <= record.params.items()
        ]
        for path in dict.fromkeys(str(record.params[by]) for record in named):
            if goal.path in ("", path):
                own = [record for record in named if record.params[by] == path]
                ranked = sorted(own, key=lambda record: record.value, reverse=not goal.at_least)
                good = sum(goal.reached(record.value) for record in own)
                found.append(Verdict(goal, path, ranked[0], good, len(own)))
    return found


def table(verdicts: Sequence[Verdict], by: str = "path") -> Table:
    """One line per verdict; ``by`` as for ``judge``."""
    made = Table(title="Goals", title_justify="left")
    for column in (by, "what", "wanted", "worst", "where", "reached"):
        made.add_column(column, justify="left" if column in ("what", "where") else "right")
    for verdict in verdicts:
        goal, worst = verdict.goal, verdict.worst
        where = ", ".join(f"{k} {v}" for k, v in worst.params.items() if k != by)
        every = verdict.reached == verdict.records
        made.add_row(
            verdict.path,
            goal.what,
            f"{'>=' if goal.at_least else '<='} {goal.limit:g}",
            f"{worst.value:.3g}",
            where,
            "yes" if every else f"no: {verdict.reached} of {verdict.records}",
            style=None if every else "red",
        )
    return made
