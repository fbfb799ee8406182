"""The schedule of faults is a function of its seed and leaves somebody of each kind alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.faults import KINDS
from tests.chaos.schedule import RECOVERY, Strike, schedule

SIZES = {"p": 3, "d": 3, "g": 2, "e": 1}


def ends(strike: Strike) -> float:
    return strike.at + (RECOVERY if strike.kind == "kill" else strike.seconds)


@given(st.integers(0, 2**32))
def test_same_seed_same_faults_and_longer_ones_begin_alike(seed: int) -> None:
    assert schedule(seed, 20, SIZES) == schedule(seed, 60, SIZES)[:20]


@given(st.integers(0, 2**32))
def test_one_of_each_kind_is_left_alone(seed: int) -> None:
    strikes = schedule(seed, 80, SIZES)
    assert all(a.at <= b.at for a, b in pairwise(strikes))
    assert not [s for s in strikes if s.kind == "kill" and s.target.endswith("0")]
    for strike in strikes:
        disturbed = {
            other.target
            for other in strikes
            if other.disturbs and other.at <= strike.at < ends(other)
        }
        left = dict(SIZES)
        for target in disturbed:
            left[target[0]] -= 1
        assert all(left[letter] >= 1 for letter in "pdg"), (strike, disturbed)


@given(st.integers(0, 2**32))
def test_every_kind_of_fault_befalls_every_kind_of_process(seed: int) -> None:
    pairs = {(kind, letter) for kind in KINDS for letter in KINDS[kind].roles if letter in SIZES}
    drawn = Counter((s.kind, s.target[0]) for s in schedule(seed, 2 * len(pairs), SIZES))
    assert drawn == dict.fromkeys(pairs, 2)
