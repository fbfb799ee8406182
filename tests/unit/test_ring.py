"""Consistent hashing: who comes or goes moves only its own keys, and all have about as many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.ring import PROBES, Ring

NAMES = st.sets(st.text(max_size=4), min_size=1, max_size=12)
KEYS = [bytes([number]) for number in range(64)]


def ring(names: set[str]) -> Ring[str]:
    return Ring((name, name) for name in names)


@given(NAMES, st.text(max_size=4))
def test_who_joins_takes_keys_and_moves_no_other(names: set[str], new: str) -> None:
    before, after = ring(names), ring(names | {new})
    for key in KEYS:
        assert after.nearest(key)[0] in (before.nearest(key)[0], new)


@given(NAMES, st.binary(max_size=8))
def test_an_order_of_different_members(names: set[str], key: bytes) -> None:
    order = ring(names).nearest(key)
    assert 1 <= len(order) == len(set(order)) <= min(PROBES, len(names))


def test_keys_are_spread() -> None:
    members = ring({f"worker {number}" for number in range(10)})
    counts = Counter(members.nearest(number.to_bytes(4, "big"))[0] for number in range(5000))
    assert len(counts) == 10 and max(counts.values()) < 1.3 * 500


def test_nobody() -> None:
    assert Ring[str]([]).nearest(b"key") == []
