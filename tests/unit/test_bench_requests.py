"""What is worked out from the times of whole requests: courses, ratios, percentiles, goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.generation import AttemptKey, Timings
from baton.kv.trace import NO_LAYER, Trace, Tracer
from bench import course, goals, itl, memory, requests
from bench.cluster import Answer
from bench.goals import Goal
from bench.paths import TRANSPORTS
from bench.records import Record
from bench.shapes import SMOLLM2_135M, TINY, checkpoint
from model.weights.revision import model_revision


def trace_two_layers(path: Path) -> None:
    """Two chunks of 16 tokens in two layers; the second layer is sent whole, as one piece."""
    tracer, key = Tracer(path), AttemptKey("r", 0)
    with tracer.hand_off("prefill", key, 0, 32) as there:
        assert there is not None
        for end, began in ((16, 1.0), (32, 2.0)):
            there.add("computed", 0, end, began)
            there.add("computed", 1, end, began + 0.5)
            there.add("sent", 0, end, began + 0.1)
        there.add("sent", 1, 32, 2.6)
        there.add("first token", NO_LAYER, 32, 2.7)
    with tracer.hand_off("decode", key, 0, 32) as here:
        assert here is not None
        for layer, end, at in ((0, 16, 1.25), (0, 32, 2.25), (1, 32, 2.625)):
            here.add("received", layer, end, at)
            here.add("written", layer, end, at + 0.125)


def test_a_course_joins_what_both_ends_saw(tmp_path: Path) -> None:
    trace_two_layers(tmp_path / "traces")
    made = course.read(tmp_path / "traces")["r"]
    assert (made.layers, made.chunks, made.tokens) == (2, 2, 32)
    assert made.parts[-1] == course.Part(
        1, 32, computed=2.5, sent=2.6, received=2.625, written=2.75
    )
    assert made.tail == pytest.approx(0.25)  # layer 1 was there at 2.5, and in place at 2.75
    assert made.tail_after_compute == pytest.approx(0.05)
    assert made.seconds == pytest.approx(1.75)


def test_a_hand_off_that_was_given_up_has_no_course(tmp_path: Path) -> None:
    path = tmp_path / "traces"
    trace_two_layers(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["events"] = lines[1]["events"][:2]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert course.read(path) == {}
    assert [row.tokens for row in course.written(path)["r"]] == [16]


def test_what_was_written_is_counted_once(tmp_path: Path) -> None:
    trace_two_layers(tmp_path / "traces")
    rows = course.written(tmp_path / "traces")["r"]
    assert [row.tokens for row in rows] == [16, 16, 32]


def test_tracing_is_off_without_a_file(tmp_path: Path) -> None:
    with Tracer(None).hand_off("decode", AttemptKey("r", 0), 0, 16) as trace:
        assert trace is None
    with pytest.raises(OSError, match="nowhere"):
        Tracer(tmp_path / "nowhere" / "traces")


def test_a_trace_is_written_however_its_hand_off_ends(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "traces")
    with pytest.raises(RuntimeError), tracer.hand_off("decode", AttemptKey("r", 3), 0, 16) as trace:
        assert isinstance(trace, Trace)
        trace.add("received", 0, 16)
        raise RuntimeError
    told = json.loads((tmp_path / "traces").read_text())
    assert (told["request"], told["attempt"], len(told["events"])) == ("r", 3, 1)


def answer(came: list[float], **timings: float) -> Answer:
    return Answer("r", 0.0, came, Timings(**timings))


def test_figures_of_a_request(tmp_path: Path) -> None:
    trace_two_layers(tmp_path / "traces")
    handed = answer([1.1, 1.25, 1.35, 1.45, 1.55], prefill=1.05, transfer_tail=0.02)
    one = requests.Round(handed, alone=handed, beside=answer([1.0, 1.3, 1.5, 1.7]))
    series = requests.Series(32, [answer([1.0, 1.1], prefill=1.0)], {"shm": [one]})
    rows = requests.evaluate(series, course.read(tmp_path / "traces"))
    found = {(r.name, r.params["path"], r.params.get("batch")): r.value for r in rows}
    assert found["TTFT / colocated", "shm", None] == pytest.approx(1.1)
    assert found["prefill / colocated", "shm", None] == pytest.approx(1.05)
    assert found["beyond step", "shm", None] == pytest.approx(30)  # 150 ms, less 100, less 20
    assert found["gap, steps", "shm", 4] == pytest.approx(1.5)
    assert found["tail, pieces", "shm", None] == pytest.approx(0.25 / (1.75 / 4))
    assert found["hidden", "shm", None] == pytest.approx(1 - 0.25 / 1.75)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)]
)
def test_percentiles_are_values_that_were_seen(share: float, expected: int) -> None:
    assert itl.percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="too short"):
        itl.percentile([], 0.5)


def test_a_load_fits_the_context_or_is_refused() -> None:
    assert itl.Load(0.5, 1.0, 1).tokens(SMOLLM2_135M) * SMOLLM2_135M.token_bytes >= 0.5e9 * 1.25
    with pytest.raises(ValueError, match="the context is"):
        itl.Load(5.0, 1.0, 1).tokens(SMOLLM2_135M)


def test_goals_are_judged_by_the_worst() -> None:
    few = (Goal("fast", "speed", 0.9, "grpc", at_least=True), Goal("late", "delay", 2.0))
    rows = [
        Record("speed", 0.95, "ratio", {"path": "grpc", "tokens": 1}),
        Record("speed", 0.5, "ratio", {"path": "grpc", "tokens": 2}),
        Record("speed", 0.1, "ratio", {"path": "shm", "tokens": 1}),
        Record("delay", 1.0, "ms", {"path": "shm"}),
        Record("delay", 3.0, "ms", {"path": "grpc"}),
    ]
    speed, shm, grpc = goals.judge(rows, few)
    assert (speed.worst.value, speed.reached, speed.records) == (0.5, 1, 2)
    assert (shm.path, shm.reached, shm.records) == ("shm", 1, 1)
    assert (grpc.path, grpc.reached) == ("grpc", 0)
    assert goals.judge(rows[3:], few[:1]) == []


def test_a_checkpoint_is_made_once_and_again_the_same(tmp_path: Path) -> None:
    first, second = (checkpoint(TINY, tmp_path / name) for name in ("a", "b"))
    assert model_revision(first) == model_revision(second)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint(TINY, tmp_path / "a") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


def test_the_shape_that_is_reported() -> None:
    assert SMOLLM2_135M.token_bytes == 23_040


def test_every_transport_has_a_bound() -> None:
    assert memory.BOUNDS.keys() == {*TRANSPORTS}
