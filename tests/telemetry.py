"""``docs/metrics.md`` as data; whether a query asks for what is there; promtool, where it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "metrics.md"

#: What Prometheus adds to every series.
_SCRAPE = frozenset({"job", "instance"})
_SUFFIXES = ("_bucket", "_count", "_sum")
_SERIES = re.compile(r"\b((?:baton|process)_\w+)\s*(\{[^}]*\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"[^\"]*\"")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class Told:
    """One metric, as a row of the table has it."""

    type: str
    labels: frozenset[str]
    processes: frozenset[str]
    meaning: str


def table() -> dict[str, Told]:
    """Every row, by name."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", TABLE.read_text(encoding="utf-8"), re.M)
    assert len(rows) == len(dict(rows)), "a metric has two rows"
    found = {}
    for name, rest in rows:
        type_, labels, _, processes, meaning = (cell.strip() for cell in rest.split("|"))
        named = frozenset(re.findall(r"`(\w+)`", labels))
        found[name] = Told(type_, named, frozenset(processes.split(", ")), meaning)
    return found


def wrong_in(query: str, known: dict[str, Told]) -> list[str]:
    """Metrics and labels of a PromQL expression that nobody tells; one line each."""
    wrong, labels = [], set(_SCRAPE)
    series = _SERIES.findall(_GROUPING.sub("", query))
    if not series:
        return [f"no metric in {query!r}"]
    for name, matchers in series:
        base = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
        histogram = known.get(base)
        row = known.get(name) or (
            histogram if histogram is not None and histogram.type == "histogram" else None
        )
        if row is None or (name in known and row.type == "histogram"):
            wrong.append(f"{name} is no series")
            continue
        own = row.labels | _SCRAPE | ({"le"} if name.endswith("_bucket") else set())
        labels |= own
        wrong += [f"{name} has no label {m}" for m in _MATCHER.findall(matchers) if m not in own]
    grouped = {label.strip() for group in _GROUPING.findall(query) for label in group.split(",")}
    return wrong + [f"no metric has label {label}" for label in grouped - labels - {""}]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it; skips the test where it is not installed (Debian's package is ``prometheus``)."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool")
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)
