"""Who is slow: workers beside the others of their side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton import live
from gateway.telling.paces import Paces
from tests.feeds import worker

D = [worker(f"0{number}aaaaaa") for number in range(1, 5)]
P = [worker(f"0{number}bbbbbb", "prefill") for number in range(5, 8)]


def steps(
    paces: Paces, milliseconds: dict[str, float], *, at: float = 100.0, batch: int = 8
) -> None:
    """Each of them takes a few steps."""
    for id, ms in milliseconds.items():
        for number in range(5):
            paces.stepped(id, at + number / 10, ms, batch)


def found(paces: Paces, now: float = 101.0, workers: list[live.Worker] = D) -> dict[str, str]:
    return {
        id: f"{verdict.kind} x{verdict.times}: {verdict.text}"
        for id, verdict in paces.verdicts(workers, now).items()
    }


def test_the_slow_one_is_slow_until_it_is_nearly_as_fast_as_the_others() -> None:
    paces, (one, two, three, _) = Paces(), [str(each.id) for each in D]
    steps(paces, {one: 20.0, two: 70.0, three: 24.0})
    slow = {two: "slow x3.2: step 70 ms, others 22 ms"}
    assert found(paces) == slow == found(paces)
    steps(paces, {one: 20.0, two: 40.0, three: 24.0}, at=120.0)
    assert list(found(paces, 121.0)) == [two], "it was slow"
    steps(paces, {one: 20.0, two: 34.0, three: 24.0}, at=140.0)
    assert found(paces, 141.0) == {}
    steps(paces, {one: 20.0, two: 40.0, three: 24.0}, at=160.0)
    assert found(paces, 161.0) == {}, "it no longer was"


@pytest.mark.parametrize(
    "milliseconds",
    [
        {"01aaaaaa": 20.0, "02aaaaaa": 39.0},  # less than twice as long
        {"01aaaaaa": 0.5, "02aaaaaa": 5.0},  # a few milliseconds are nothing
        {"01aaaaaa": 80.0},  # with nobody to compare it with
        {"01aaaaaa": 20.0, "05bbbbbb": 200.0},  # of another side
    ],
)
def test_who_is_not_slow(milliseconds: dict[str, float]) -> None:
    paces = Paces()
    steps(paces, milliseconds)
    assert found(paces, workers=[*D, *P]) == {}


def test_of_two_workers_one_is_slow_by_the_other_and_only_while_it_computes() -> None:
    paces = Paces()
    steps(paces, {"01aaaaaa": 20.0, "02aaaaaa": 50.0})
    assert list(found(paces)) == ["02aaaaaa"]
    assert found(paces, 120.0) == {}


def test_who_has_more_to_do_is_busy_and_not_slow() -> None:
    paces = Paces()
    steps(paces, {"01aaaaaa": 20.0, "02aaaaaa": 20.0})
    steps(paces, {"03aaaaaa": 90.0}, batch=60)
    assert found(paces) == {"03aaaaaa": "busy x4.5: 60 sequences, others 8"}


def test_who_is_held_up_between_steps_is_slow_by_its_streams() -> None:
    paces = Paces()
    steps(paces, {"01aaaaaa": 20.0, "02aaaaaa": 20.0})
    for number in range(5):
        paces.streamed("01aaaaaa", 100 + number / 4, 48.0)
        paces.streamed("02aaaaaa", 100 + number / 4, 6.5)
    assert found(paces) == {"02aaaaaa": "slow x7.4: 6.5 tokens/s a stream, others 48"}


def computes(paces: Paces, id: str, rate: float, *, at: float = 100.0, prompts: int = 4) -> None:
    """Prompts of 100 tokens, one after another, with a pause of a second between them."""
    for number in range(prompts):
        prompt = (f"{id} {number}", 0)
        for computed in range(0, 101, 20):
            paces.computed(id, prompt, at + computed / rate, computed, 100)
        at += 100 / rate + 1


def test_a_prefill_worker_is_judged_by_the_time_that_it_computes() -> None:
    paces, ids = Paces(), [str(each.id) for each in P]
    for id, rate in zip(ids, (1000.0, 300.0, 900.0), strict=True):
        computes(paces, id, rate)
    assert found(paces, 110.0, P) == {ids[1]: "slow x3.2: 300 prompt tokens/s, others 950"}
    assert found(paces, 200.0, P) == {}, "that was long ago"


def test_of_short_prompts_nothing_is_heard_between_place_and_first_token() -> None:
    paces, ids = Paces(), [str(each.id) for each in P]
    for id, rate in zip(ids, (1000.0, 300.0, 900.0), strict=True):
        for number in range(4):
            prompt, at = (f"{id} {number}", 0), 100.0 + number
            paces.computed(ids[0], prompt, at, 10, 100)
            paces.computed(id, prompt, at, 40, 100, cached=40)  # it is computed here after all
            paces.begun(prompt, at + 60 / rate, 100)
            paces.computed(id, prompt, at + 0.5, 100, 100, cached=40)
    assert found(paces, 110.0, P) == {ids[1]: "slow x3.2: 300 prompt tokens/s, others 950"}


def test_a_prompt_that_was_given_up_does_not_count_as_computed_ever_after() -> None:
    paces, ids = Paces(), [str(each.id) for each in P]
    for id in ids:
        computes(paces, id, 1000.0)
    paces.computed(ids[0], ("lost", 0), 110.0, 0, 100)
    paces.left(("lost", 0))
    computes(paces, ids[0], 1000.0, at=140.0)
    assert found(paces, 150.0, P) == {}


def test_who_is_gone_or_unwell_is_not_compared_with() -> None:
    paces = Paces()
    steps(paces, {"01aaaaaa": 20.0, "02aaaaaa": 50.0})
    out = worker("01aaaaaa", state="out", reason="no beat")
    assert found(paces, workers=[out, D[1]]) == {}
    paces.keep(["02aaaaaa"])
    assert found(paces) == {}


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=9))
def test_a_verdict_is_of_one_who_is_slower_than_the_median_of_the_others(took: list[float]) -> None:
    workers = [worker(f"{number:02x}cccccc") for number in range(1, len(took) + 1)]
    paces = Paces()
    steps(paces, {str(one.id): ms for one, ms in zip(workers, took, strict=True)})
    for number, one in enumerate(workers):
        others = sorted(took[:number] + took[number + 1 :])
        middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2 if others else None
        slow = middle is not None and took[number] > max(2 * middle, middle + 5)
        assert (one.id in found(paces, workers=workers)) == slow
