"""What an API key may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import RateLimited
from baton.keys import KeyLimits
from gateway.quota import Quota, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 2000)), max_size=60),
)
def test_a_bucket_gives_its_rate_and_one_burst(
    per_minute: float, tries: list[tuple[float, float]]
) -> None:
    """Whoever waits as long as told is served; over any time no more than rate, the burst, and
    one amount that is larger than the bucket."""
    bucket, now, given_away, largest = TokenBucket(per_minute, 0.0), 0.0, 0.0, 0.0
    for pause, amount in tries:
        now += pause
        if wait := bucket.wait(amount, now):
            assert bucket.wait(amount, now + wait) < 1e-6
        else:
            bucket.take(amount, now)
            given_away += amount
            largest = max(largest, amount)
        assert given_away <= per_minute * (1 + now / 60) + largest + 1e-6


def test_a_quota_says_when_to_come_again() -> None:
    clock = Clock()
    quota = Quota(KeyLimits(requests_per_minute=2, tokens_per_minute=600), clock)
    for _ in range(2):
        with quota.request():
            pass
    with pytest.raises(RateLimited, match="2 requests per minute") as refused, quota.request():
        pass
    assert refused.value.retry_after == pytest.approx(30)
    quota.spend(900)  # more than a minute's worth: a full bucket gives it, into debt
    with pytest.raises(RateLimited, match="600 prompt tokens per minute") as refused:
        quota.spend(100)
    assert refused.value.retry_after == pytest.approx(40)
    clock.now += 40.01
    quota.spend(100)


def test_requests_at_once_are_counted_until_they_end() -> None:
    quota = Quota(KeyLimits(concurrent=1), Clock())
    with pytest.raises(ValueError, match="mine"), quota.request():
        with pytest.raises(RateLimited, match="at most 1 at once"), quota.request():
            pass
        raise ValueError("mine")
    with quota.request():
        pass


def test_changed_limits_keep_what_was_used() -> None:
    quota = Quota(KeyLimits(tokens_per_minute=100), Clock())
    quota.spend(100)
    quota.change(KeyLimits(tokens_per_minute=150))
    quota.spend(50)
    with pytest.raises(RateLimited):
        quota.spend(1)
    quota.change(KeyLimits())
    quota.spend(10**9)
