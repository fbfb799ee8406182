"""The benchmark of the hand-off, at sizes that take seconds: every figure is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.job import MIB, Job
from bench.kv import main
from bench.pair import Run
from bench.paths import LIMITS, TRANSPORTS
from bench.transports import COMPARED, evaluate

PATHS = (*LIMITS, *TRANSPORTS)


@pytest.mark.parametrize(("mib", "token_kib"), [(0, 16), (1, 48), (1, 0)])
def test_sizes_that_are_no_whole_blocks(mib: int, token_kib: int) -> None:
    with pytest.raises(ValueError, match="whole number of blocks"):
        Job("grpc", mib, token_kib, 0)


@pytest.mark.parametrize("token_kib", [16, 128])
def test_a_job_is_as_large_as_it_says(token_kib: int) -> None:
    job = Job("grpc", 32, token_kib, 0)
    assert job.shape.total_bytes == job.nbytes == 32 * MIB
    assert sorted(job.table(0)) == sorted(job.table(1)) == list(range(job.shape.end // 16))
    assert job.table(0) != job.table(1)


def test_ratios_are_of_the_same_round_and_the_first_does_not_count() -> None:
    def run(seconds: float) -> Run:
        return Run(seconds, sender_cpu_s=seconds, receiver_cpu_s=0.0, sender_peak_bytes=MIB,
                   receiver_peak_bytes=0)  # fmt: skip

    slow = [run(9.0), run(2.0), run(4.0), run(8.0)]
    fast = [run(9.0), run(1.0), run(1.0), run(4.0)]
    runs = dict.fromkeys(PATHS, fast) | {"grpc": slow}
    found = {(r.params["path"], r.name): r.value for r in evaluate(Job("", 1000, 128, 0), runs)}
    assert found["grpc", "of bare grpc"] == 0.5
    assert found["grpc", "throughput"] == pytest.approx(1000 * MIB / 1e9 / 4)
    assert found["grpc", "sender CPU"] == pytest.approx(4 / (1000 * MIB / 1e9))
    assert found["shm", "sender memory"] == 1


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kv.json"
    arguments = ["--sizes", "2", "--token-sizes", "16", "--rounds", "1", "--json", str(out)]
    assert main(["--only", "transports", *arguments]) == 0
    records = json.loads(out.read_text())
    assert {record["params"]["path"] for record in records} == {*PATHS}
    ratios = [record for record in records if record["unit"] == "ratio"]
    assert {(r["params"]["path"], r["name"].removeprefix("of ")) for r in ratios} == {*COMPARED}
    assert all(r["value"] > 0 for r in records if r["name"] == "throughput")
    shown = capsys.readouterr().out
    assert "throughput" in shown and "wanted" in shown


@pytest.mark.parametrize(
    "arguments", ["--only timeline", "--only itl,nothing", "--over pigeon", "--tokens 0"]
)
def test_what_cannot_be_measured(arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
