"""The benchmark of whole requests: real workers with a tiny model, every figure, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.goals import GOALS
from bench.kv import main


def test_whole_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "kv.json", tmp_path / "course.png"
    arguments = ["--model", "tiny", "--rounds", "1", "--tokens", "64,600", "--json", str(out)]
    arguments += ["--timeline-tokens", "600", "--plot", str(picture)]
    arguments += ["--memory-tokens", "2048", "--itl-gb", "0.005", "--itl-rounds", "2"]
    assert main(["--only", "requests,itl,memory,timeline", "--itl-window", "0.3", *arguments]) == 0
    records = json.loads(out.read_text())
    for goal in GOALS:
        if not goal.name.startswith("of "):
            of = {r["params"]["path"] for r in records if r["name"] == goal.name}
            assert of >= ({goal.path} if goal.path else {"shm", "grpc"}), goal
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "beside a hand-off" in capsys.readouterr().out
