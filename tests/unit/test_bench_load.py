"""Load: what is asked and when, what is derived from what was seen, and what is refused."""

from __future__ import annotations

import json
import math
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import compare, report
from bench.load import raw, statistics
from bench.load.raw import Answer, Level, RawError, Writer
from bench.load.statistics import Estimate, Measured, Sample, Slo, Trust, estimate
from bench.load.workload import Endpoint, Lengths, arrivals, at_rate, drawn

TRUST = Trust(share=0.1, lag=0.05)


def answer(n: int, *, first: float = 0.1, gap: float = 0.01, tokens: int = 11) -> Answer:
    """The n-th: one a second, a token at a time."""
    ticks = tuple(n + first + gap * number for number in range(tokens))
    return Answer(n, n, ticks, ticks[-1], tokens, prompt=10, cached=4)


def level(answers: list[Answer], *, lag: float = 1e-4, value: float = 1.0) -> Level:
    return Level(f"{value:g} requests/s", "rate", value, answers=answers, lag=[lag] * 100)


def by_name(made: Level, slo: Slo | None = None) -> dict[str, Estimate]:
    found = estimate(Measured(made), slo or Slo(), TRUST)
    return {one.name: one for one in found}


# What is asked


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, math.inf])
def test_arrivals_have_their_rate_and_their_bursts(burstiness: float) -> None:
    times = list(arrivals(20_001, 50.0, burstiness, seed=1))
    gaps = np.diff(times)
    assert times[0] == 0.0 and len(times) == 20_001
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05, abs=1e-9)


def test_prompts_share_what_they_are_to_share() -> None:
    made = drawn(20, Lengths(8, 16), Lengths(1, 3), prefix=4, vocabulary=9, seed=1)
    assert len({one.prompt[:4] for one in made}) == 1 and len({one.prompt for one in made}) == 20
    assert all(8 <= len(one.prompt) <= 16 and 1 <= one.max_tokens <= 3 for one in made)
    again = drawn(20, Lengths(8, 16), Lengths(1, 3), prefix=4, vocabulary=9, seed=1)
    assert made == again
    assert made[1] == replace(at_rate(made, 5.0, 1.0, 0)[1], at=0.0)
    with pytest.raises(ValueError, match="8 tokens that all share leave nothing of 8"):
        drawn(1, Lengths(8, 8), Lengths(1, 1), prefix=8, vocabulary=9, seed=1)


@pytest.mark.parametrize("text", ["0", "9:3", "some", "3:x"])
def test_no_lengths(text: str) -> None:
    with pytest.raises(ValueError):
        Lengths.parse(text)


def test_bodies() -> None:
    (one,) = drawn(1, Lengths(3, 3), Lengths(5, 5), prefix=0, vocabulary=9, seed=1)
    ids = Endpoint(url="http://x/", model="m", chat=False, words=False)
    assert ids.address == "http://x/v1/completions"
    assert json.loads(ids.body(one))["prompt"] == list(one.prompt)
    extra = {"stream_options": None, "ignore_eos": True}
    chat = Endpoint(url="http://x", model="m", chat=True, words=True, key="k", extra=extra)
    said = json.loads(chat.body(one))
    assert said["ignore_eos"] is True and "stream_options" not in said
    assert len(said["messages"][0]["content"].split()) == 3
    assert chat.headers(one)["authorization"] == "Bearer k"


# What is derived


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.floats(0, 1),
)
def test_a_percentile_is_that_of_the_values_written_out(
    values: list[tuple[int, int]], counts: list[int], share: float
) -> None:
    sample = Sample(
        np.array([float(value) for value, _ in values]), np.array([owner for _, owner in values])
    )
    listed = sorted(value for value, owner in values for _ in range(counts[owner]))
    (found,) = sample.quantiles([share], np.array(counts))
    if not listed:
        assert math.isnan(found)
    else:
        assert sum(one <= found for one in listed) >= share * len(listed) - 1e-6
        assert sum(one < found for one in listed) < max(1e-9, share * len(listed))
        assert sample.mean(np.array(counts)) == pytest.approx(sum(listed) / len(listed))


def test_known_latencies() -> None:
    answers = [answer(n, first=(n + 1) / 100) for n in range(100)]
    found = by_name(level(answers), Slo(ttft=0.5, tpot=0.02))
    told = {name: one.value for name, one in found.items() if not one.doubt}
    assert told == pytest.approx(
        {
            "answered": 1.0,
            "throughput": 100 / 100.1,
            "output": 1100 / 100.1,
            "attained": 0.5,
            "goodput": 50 / 100.1,
            "token goodput": 550 / 100.1,
            **{f"{name} {p}": 10.0 for name in ("TPOT", "ITL") for p in ("mean", "p50", "p90")},
            **{f"{name} {p}": 10.0 for name in ("TPOT", "ITL") for p in ("p95", "p99")},
            "TTFT mean": 505,
            "TTFT p50": 500,
            "TTFT p90": 900,
            "TTFT p95": 950,
            "TTFT p99": 990,
            "E2E mean": 605,
            "E2E p50": 600,
            "E2E p90": 1000,
            "E2E p95": 1050,
            "E2E p99": 1090,
        }
    )


def test_what_failed_has_no_latency_and_misses_every_objective() -> None:
    failed = replace(answer(3), status="HTTP 500: no", ticks=())
    found = by_name(level([answer(0), answer(1), answer(2), failed]), Slo(ttft=9.0))
    assert found["answered"].value == found["attained"].value == 0.75
    assert found["output"].value == pytest.approx(33 / 3.2)
    assert found["TTFT p99"].value == pytest.approx(100)
    assert by_name(level([failed])) == {}


def test_an_answer_of_one_token_has_no_pace() -> None:
    measured = Measured(level([answer(0, tokens=1), answer(1, gap=9.0)]))
    assert list(measured.met(Slo(tpot=1.0))) == [True, False]
    assert len(measured.samples["TPOT"]) == 1


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=30), st.floats(0.01, 10))
def test_more_time_is_never_missed_more_often(firsts: list[float], limit: float) -> None:
    measured = Measured(level([answer(n, first=first) for n, first in enumerate(firsts)]))
    shares = [measured.met(Slo(ttft=limit), scale).mean() for scale in statistics.scales()]
    assert shares == sorted(shares)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 of 100 times; with 100 runs of 200 draws no fewer than 85 is all but certain."""
    rng, held = random.Random(5), 0
    for run in range(100):
        firsts = [rng.expovariate(1.0) + 0.01 for _ in range(200)]
        measured = Measured(level([answer(n, first=first) for n, first in enumerate(firsts)]))
        counts = measured.resamples(seed=run)
        assert (counts.sum(axis=1) == 200).all()
        sample = measured.samples["TTFT"]
        low, high = np.percentile([sample.mean(row) for row in counts], (2.5, 97.5))
        held += low <= 1.01 <= high
    assert held >= 85


def test_the_highest_load_is_below_the_first_that_fails() -> None:
    assert statistics.best({4: 0.95, 1: 1.0, 2: 0.99, 8: 0.3, 16: 0.95}, 0.9) == 4
    assert statistics.best({1: 0.5, 2: 0.99}, 0.9) is None
    assert statistics.best({1: 1.0, 2: math.nan, 4: 1.0}, 0.9) == 1


# What is refused


def test_a_latency_within_the_generators_own_lag_is_refused() -> None:
    found = by_name(level([answer(n) for n in range(9)], lag=0.004), Slo(ttft=1.0))
    assert found["ITL p50"].doubt == "the generator's own lag is 4.00 ms there"
    assert not found["TTFT p50"].doubt and not found["TPOT p50"].doubt  # of 100 ms; 10 gaps
    assert not found["goodput"].doubt


def test_what_was_sent_late_is_refused() -> None:
    late = [replace(answer(n), due=n - 0.02) for n in range(9)]
    found = by_name(level(late), Slo(ttft=0.1))
    assert found["TTFT p50"].doubt == "requests were sent 20.00 ms late there"
    assert found["goodput"].doubt == "TTFT: requests were sent 20.00 ms late there"
    assert not found["ITL p50"].doubt and not found["throughput"].doubt


def test_nothing_is_told_by_a_loop_that_hangs_or_that_nobody_watched() -> None:
    made = level([answer(n, first=10.0, gap=1.0) for n in range(9)])
    made.lag[:2] = [0.3, 0.3]
    assert "was 300.0 ms late (p99), more than 50 ms" in by_name(made)["TTFT p50"].doubt
    made.lag = []
    assert "nobody looked" in by_name(made)["E2E p50"].doubt


# Files, reports, comparisons


def stored(path: Path, levels: list[Level], **params: str) -> Path:
    with closing(Writer(path, {"model": "m", **params})) as out:
        for one in levels:
            out.level(one)
            for each in one.answers:
                out.write(raw.line(each) + "\n")
            out.put({"lag": one.lag})
            out.put({"work": {"prefill": [10, 0], "decode": []}})
            out.put({"work": {"prefill": [3, 7], "decode": [1]}})
            out.put({"cpu": 0.25})
    return path


def test_what_was_seen_is_read_again(tmp_path: Path) -> None:
    made = level([answer(0), replace(answer(1), status="HTTP 429: later", ticks=())])
    (found,) = raw.read(stored(tmp_path / "raw.jsonl", [made])).levels
    assert found.answers == [
        replace(one, ticks=tuple(round(tick, 6) for tick in one.ticks), ended=round(one.ended, 6))
        for one in made.answers
    ]
    assert (found.lag, found.cpu) == (made.lag, [0.25])
    assert statistics.imbalance(found) == pytest.approx({"prefill": 1.7, "decode": 1.0})
    assert statistics.cached(found) == 0.4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"level": {}}\n', "line 1 is not of a run: .*begins with run"),
        ('{"run": {}}\n{"lag": [1]}\n', "line 2"),
        (
            '{"run": {}}\n{"level": {"label": "", "kind": "", "value": 1}}\n{"mood": 3}',
            "line 3",
        ),
        ("[]", "line 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text(text)
    with pytest.raises(RawError, match=said):
        raw.read(path)


def test_a_report_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = level([answer(n) for n in range(20)], value=1.0)
    late = level([answer(n, first=0.5) for n in range(20)], value=2.0)
    broken = level([replace(answer(0), status="HTTP 500: [no]", ticks=())], value=4.0)
    path = stored(tmp_path / "raw.jsonl", [good, late, broken])
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    asked = [str(path), "--slo-ttft", "200", "--json", str(out), "--plot", str(picture)]
    assert report.main(asked) == 1  # a request failed
    listed = {(one["name"], one["params"].get("rate")): one for one in json.loads(out.read_text())}
    assert listed["attained", 1.0]["value"] == 1.0 and listed["attained", 2.0]["value"] == 0.0
    assert listed["highest attained", None]["value"] == 1.0
    assert listed["TTFT p50 low", 1.0]["value"] == pytest.approx(100)
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "1 failed: HTTP 500: [no]" in printed and "90% within the objectives: 1" in printed


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(3)
    firsts = [rng.uniform(0.08, 0.12) for _ in range(200)]
    paths = [
        stored(
            tmp_path / f"{label}.jsonl",
            [level([answer(n, first=scale * first) for n, first in enumerate(firsts)])],
            label=label,
        )
        for label, scale in (("old", 1.0), ("new", 1.25))
    ]
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    asked = [*map(str, paths), "--slo-ttft", "110", "--json", str(out), "--plot", str(picture)]
    assert compare.main(asked) == 0
    told = {one["name"]: one["value"] for one in json.loads(out.read_text())}
    assert told["TTFT mean"] == pytest.approx(1.25, rel=1e-3)
    assert 1.2 < told["TTFT mean low"] < 1.25 < told["TTFT mean high"] < 1.3
    assert told["ITL mean"] == pytest.approx(1.0, rel=1e-3)
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert any("TTFT mean" in line and "worse" in line for line in lines)
    assert not any("ITL mean" in line and ("worse" in line or "better" in line) for line in lines)


def test_runs_with_no_load_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        stored(tmp_path / f"{value}.jsonl", [level([answer(0)], value=value)])
        for value in (1.0, 2.0)
    ]
    assert compare.main([*map(str, paths)]) == 2
    assert "one has 1 requests/s, the other 2 requests/s" in capsys.readouterr().err
