"""Records of benchmarks: the JSON and the table hold every number once."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.records import Record, table, write

RECORDS = [
    Record("throughput", 1.25, "GB/s", {"path": "grpc", "size MiB": 64}),
    Record("of tcp", 0.5, "ratio", {"path": "grpc", "size MiB": 64}),
    Record("throughput", 4321.0, "GB/s", {"path": "tcp", "size MiB": 64}),
]


def test_json_is_a_list_of_records(tmp_path: Path) -> None:
    write(tmp_path / "out.json", RECORDS)
    first, *others = json.loads((tmp_path / "out.json").read_text())
    assert first == {
        "name": "throughput",
        "value": 1.25,
        "unit": "GB/s",
        "params": {"path": "grpc", "size MiB": 64},
    }
    assert [set(other) for other in others] == [{"name", "value", "unit", "params"}] * 2


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write(tmp_path / "out.json", [Record("throughput", math.nan, "GB/s", {})])
    assert not (tmp_path / "out.json").exists()


def test_the_table_has_a_line_per_circumstances() -> None:
    shown = StringIO()
    Console(width=120, file=shown).print(table("title", RECORDS))
    text = shown.getvalue()
    grpc, tcp = (line for line in text.splitlines() if "64" in line)
    assert "1.25" in grpc and "0.5" in grpc and "4321" in tcp
    assert text.count("throughput") == 1
