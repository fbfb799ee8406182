"""The benchmark of the engine, at sizes that take seconds: every figure is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import goals
from bench.engine import rounds
from bench.engine.__main__ import main
from bench.engine.cost import Case, work
from bench.engine.goals import GOALS
from bench.engine.rounds import Series
from bench.goals import Goal
from bench.records import Record
from bench.shapes import SMOLLM2_135M, TINY, checkpoint


def test_a_step_reads_the_checkpoint_and_the_cache() -> None:
    stored = (checkpoint(TINY) / "model.safetensors").stat().st_size
    alone = work(TINY, Case("decode", 1, 0), 16)
    assert 0.95 * stored < alone.nbytes < stored  # less norms and the file's header
    batch = work(TINY, Case("decode", 8, 100), 16)
    assert batch.nbytes - alone.nbytes == 8 * 100 * TINY.token_bytes
    assert work(TINY, Case("decode", 1, 0), 4).nbytes == alone.nbytes // 4


def test_a_prefill_is_its_decodes_but_for_logits() -> None:
    """The same products and pairs of query and key, only that one token alone has logits."""
    shape = SMOLLM2_135M
    steps = sum(work(shape, Case("decode", 1, before), 16).flops for before in range(64))
    logits = 63 * 2 * shape.hidden * shape.vocab
    assert work(shape, Case("prefill", 1, 64), 16).flops == steps - logits


def test_ratios_are_of_the_same_round() -> None:
    case = Case("decode", 8, 128)
    seconds = {"bf16": [0.1, 0.2, 0.4], "transformers": [0.3, 0.4, 2.0]}
    limits = [{"sum": 10.0, "other": 5.0}, {"sum": 20.0, "other": 5.0}, {"sum": 10.0, "other": 5.0}]
    found = rounds.evaluate(SMOLLM2_135M, 1, Series(case, seconds, limits))
    values = {(record.params["side"], record.name): record.value for record in found}
    assert values["bf16", "decode / transformers"] == pytest.approx(3.0)  # of 3, 2 and 5
    assert values["bf16", "decode time"] == pytest.approx(200)
    assert values["bf16", "decode"] == pytest.approx(8 / 0.2)
    gigabytes = work(SMOLLM2_135M, case, 16).nbytes / 1e9
    assert values["bf16", "decode of bandwidth"] == pytest.approx(gigabytes / 0.2 / 20)
    assert ("transformers", "decode / transformers") not in values


def test_a_goal_looks_at_its_own_records_alone() -> None:
    def record(side: str, tokens: int, value: float) -> Record:
        return Record("prefill / vllm", value, "ratio", {"side": side, "tokens": tokens})

    measured = [record("bf16", 1024, 1.2), record("bf16", 128, 0.5), record("int8", 1024, 0.5)]
    only = Goal("prefill", "prefill / vllm", 1.0, "bf16", at_least=True, where={"tokens": 1024})
    (verdict,) = goals.judge(measured, [only], by="side")
    assert (verdict.records, verdict.reached, verdict.worst.value) == (1, 1, 1.2)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "engine.json", tmp_path / "engine.png"
    sides = {"bf16", "int8", "transformers"}
    arguments = ["--model", "tiny", "--threads", "1", "--rounds", "1", "--steps", "2"]
    arguments += ["--tokens", "40", "--batch", "1,3", "--context", "24", "--json", str(out)]
    assert main([*arguments, "--sides", ",".join(sides), "--plot", str(picture)]) == 0
    records = json.loads(out.read_text())
    assert all(set(record) == {"name", "value", "unit", "params"} for record in records)
    assert all(record["value"] > 0 for record in records)

    def lines(name: str) -> set[tuple[str, int | None]]:
        own = [record["params"] for record in records if record["name"] == name]
        return {(params["side"], params.get("batch")) for params in own}

    assert lines("prefill") == {(side, None) for side in sides}
    assert lines("decode") == {(side, batch) for side in sides for batch in (1, 3)}
    assert lines("ready") == {(side, None) for side in sides - {"transformers"}}
    measured = {record["name"] for record in records}
    assert measured >= {"matrix rate", "bandwidth", "intensity"}
    judged = {goal.name for goal in GOALS if "vllm" not in goal.name and "tokens" not in goal.where}
    assert measured >= judged
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "wanted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "--only nothing",
        "--sides bf16,fp8",
        "--threads 0",
        "--peer vllm",
        "--vllm-python /usr/bin/python3",
        "--only prefill --plot roof.png",
    ],
)
def test_what_cannot_be_measured(arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())


def test_more_threads_than_cores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--threads", "4096", "--only", "decode"]) == 1
    assert "4096 threads need a core each" in capsys.readouterr().err


def test_more_memory_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--threads", "1", "--only", "decode", "--batch", "100000000"]
    assert main(arguments) == 1
    assert "fewer --sides, or a smaller --batch" in capsys.readouterr().err
