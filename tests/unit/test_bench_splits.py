"""What real fleets serve, told from a few runs; sweeps, experiments and their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import experiments, picture, sweep
from bench.costs import Costs
from bench.real import Kind
from bench.records import Record
from bench.simulate.fleet import Fleet
from bench.splits import crossing, missed

SHARES = st.floats(0.0, 1.0)


@given(seen=st.lists(st.tuples(st.floats(0.1, 100.0), SHARES), min_size=1, max_size=6))
def test_what_is_served_lies_between_two_rates_tried(seen: list[tuple[float, float]]) -> None:
    served = crossing(seen, 0.9)
    below = [rate for rate, attained in seen if attained < 0.9]
    assert 0.0 <= served <= max(rate for rate, _ in seen)
    assert not below or served <= min(below)


def test_what_is_served_is_where_the_share_is_crossed() -> None:
    assert crossing([(4.0, 1.0), (6.0, 0.8)], 0.9) == pytest.approx(5.0)
    assert crossing([(6.0, 0.8), (4.0, 1.0), (8.0, 0.95)], 0.9) == pytest.approx(5.0)
    assert crossing([(4.0, 0.95)], 0.9) == 4.0, "no more was tried"
    assert crossing([(4.0, 0.5)], 0.9) == 0.0


def _of(load: str, fleet: str, real: float, chosen: int) -> list[Record]:
    params = {"load": load, "fleet": fleet}
    return [Record("real", real, "1/s", params), Record("chosen", chosen, "ratio", params)]


def test_a_choice_is_held_against_the_best() -> None:
    found = _of("a", "1P:2D", 5.0, 0) + _of("a", "2P:1D", 4.0, 1) + _of("b", "1P:2D", 3.0, 1)
    assert missed(found) == {"a": pytest.approx(0.25), "b": 0.0}


def test_a_sweep_refuses_what_is_no_setting() -> None:
    setup = Kind(costs=Costs(step_s=0.01)).setup(Fleet(colocated=1))
    assert sweep.with_setting(setup, "placement", "prefix").settings.placement == "prefix"
    kept = sweep.with_setting(setup, "max_running", "7").settings
    assert (kept.max_running, kept.local_prefill_queue) == (7, 0)
    with pytest.raises(ValueError, match="speed is no setting"):
        sweep.with_setting(setup, "speed", "1")
    with pytest.raises(ValueError, match=r"max_running: .*greater than"):
        sweep.with_setting(setup, "max_running", "0")


def test_an_experiment_says_which_trace_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiments.main(["placement", "--out", str(tmp_path)]) == 2
    assert "mooncake_conversation.jsonl: --traces" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pane_has_a_line_for_each_variant(tmp_path: Path) -> None:
    found = [
        Record("goodput", rate / 2, "1/s", {"rate": rate, "placement": name})
        for name in ("prefix", "affinity")
        for rate in (1, 2)
    ]
    pane = picture.pane(found, "goodput", "rate", "placement")
    assert pane.title == "goodput, 1/s"
    assert [(line.label, line.x, line.y) for line in pane.lines] == [
        ("prefix", [1, 2], [0.5, 1.0]),
        ("affinity", [1, 2], [0.5, 1.0]),
    ]
    path = tmp_path / "picture.png"
    picture.draw(path, "title", [pane, picture.pane(found, "goodput", "placement")])
    assert path.stat().st_size > 1000
