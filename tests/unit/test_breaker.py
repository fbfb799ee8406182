"""Who fails again and again is left alone; who hangs is noticed; pauses between attempts grow."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from baton.backoff import Backoff
from gateway.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, Breaker, State
from gateway.fleet import Load
from gateway.progress import Progress


def opened() -> Breaker:
    """Failed at 1, 2, ... seconds, each attempt placed half a second before."""
    breaker = Breaker()
    for number in range(1, FAILURES + 1):
        assert not breaker.refuses
        breaker.failed(number - 0.5, float(number))
    return breaker


def test_failures_in_a_row_open_it_and_a_good_trial_closes_it() -> None:
    breaker = opened()
    assert breaker.refuses
    breaker.tick(FAILURES + FIRST_PAUSE - 0.1)
    assert breaker.refuses
    breaker.tick(FAILURES + FIRST_PAUSE)
    assert not breaker.refuses
    assert breaker.began() and breaker.refuses, "one trial, nothing beside it"
    breaker.succeeded()
    assert not breaker.refuses and not breaker.began()


def test_each_failed_trial_doubles_the_pause_to_a_limit() -> None:
    breaker, now, pauses = opened(), float(FAILURES), []
    for _ in range(8):
        start = now
        while breaker.refuses:
            now += 0.25
            breaker.tick(now)
        pauses.append(now - start)
        assert breaker.began()
        breaker.undecided()  # as the attempt that was lost leaves before it is judged
        breaker.failed(now, now + 1.0)
        now += 1.0
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_trial_that_tells_nothing_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.tick(100.0)
    assert breaker.began()
    breaker.undecided()
    assert breaker.state is State.HALF_OPEN and breaker.began()


def test_one_incident_is_one_failure() -> None:
    """A session that breaks takes all its attempts with it; none was placed after it broke."""
    breaker = Breaker()
    for _ in range(200):
        breaker.failed(began=1.0, now=2.0)
    assert not breaker.refuses
    breaker.succeeded()
    breaker.failed(began=3.0, now=4.0)
    assert not breaker.refuses, "a success between them starts the count anew"


def test_silence_opens_it_at_once() -> None:
    """Three in a row would take nine beats."""
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(began=1.0, now=4.0, silent=True)
    assert breaker.refuses
    breaker.tick(4.0 + FIRST_PAUSE)
    assert not breaker.refuses


def test_an_engine_with_work_must_take_steps() -> None:
    progress = Progress(timeout=3.0)
    assert not any(progress.stalled(Load(steps=7), float(at)) for at in range(10)), "idle"
    busy = [progress.stalled(Load(steps=at, running=1), float(at)) for at in range(10, 20)]
    assert not any(busy), "at work"
    hangs = [progress.stalled(Load(steps=19, running=1), float(at)) for at in range(20, 24)]
    assert hangs == [False, False, False, True]
    assert not progress.stalled(Load(steps=20, queued_tokens=5), 24.0), "it goes on"


def test_one_report_after_a_stop_of_our_own_is_not_enough_to_judge_by() -> None:
    progress = Progress(timeout=3.0)
    assert not progress.stalled(Load(steps=7, running=1), 0.0)
    assert not progress.stalled(Load(steps=7, running=1), 1000.0)
    assert not progress.stalled(Load(steps=8, running=1), 1000.1)


@given(st.integers(0, 2**32), st.integers(0, 100))
def test_pauses_double_with_jitter_up_to_the_longest(seed: int, attempts: int) -> None:
    backoff = Backoff(0.2, 30.0, random.Random(seed))
    for attempt in range(attempts):
        whole = min(30.0, 0.2 * 2**attempt)
        assert whole / 2 <= backoff.pause() <= whole
    backoff.reset()
    assert backoff.pause() <= 0.2
