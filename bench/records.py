"""What a benchmark measures: records, as a table for people and as JSON for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

Param = str | int | float


@dataclass(frozen=True, slots=True)
class Record:
    """One number, and under which circumstances it holds."""

    name: str  #: what was measured, "grpc.throughput"
    value: float
    unit: str  #: "GB/s" (10^9 bytes), "s/GB", "ms", "MiB"; "ratio" has none
    params: Mapping[str, Param]


def estimated(
    name: str, value: float, interval: tuple[float, float], unit: str, params: Mapping[str, Param]
) -> list[Record]:
    """A number, and the ends of its interval."""
    low, high = interval
    return [
        Record(name, value, unit, params),
        Record(f"{name} low", low, unit, params),
        Record(f"{name} high", high, unit, params),
    ]


def refused(name: str, reason: str, params: Mapping[str, Param]) -> Record:
    """In place of a number that could not be told."""
    return Record(f"{name} refused", 1.0, "ratio", {**params, "reason": reason})


def write(path: Path, records: Sequence[Record]) -> None:
    """Store the records as a JSON list of {name, value, unit, params}.

    Raises OSError, and ValueError for a value that is no finite number.
    """
    listed = [asdict(record) for record in records]
    path.write_text(json.dumps(listed, indent=1, allow_nan=False) + "\n")


def table(title: str, records: Sequence[Record]) -> Table:
    """One line per set of parameters, one column per name, both in order of appearance."""
    columns = list(dict.fromkeys((record.name, record.unit) for record in records))
    made = Table(title=title, title_justify="left")
    params = list(dict.fromkeys(param for record in records for param in record.params))
    for param in params:
        made.add_column(param, justify="right")
    for name, unit in columns:
        made.add_column(name if unit == "ratio" else f"{name}\n{unit}", justify="right")
    for line, cells in _lines(records).items():
        known = dict(line)
        made.add_row(
            *(str(known.get(param, "")) for param in params),
            *(_shown(cells.get(name)) for name, _ in columns),
        )
    return made


def _lines(records: Sequence[Record]) -> dict[tuple[tuple[str, Param], ...], dict[str, float]]:
    lines: dict[tuple[tuple[str, Param], ...], dict[str, float]] = {}
    for record in records:
        lines.setdefault(tuple(record.params.items()), {})[record.name] = record.value
    return lines


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
