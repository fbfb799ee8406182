"""The cost rule: which side computes a prompt, why, and what both were thought to take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.settings import DecodeSettings
from decode_worker.cost_rule import Choice, Here, There, Why, choose
from model.engine.costs import Costs

#: 1 ms a prompt token, 10 ms a decode step, measured well.
COSTS = Costs(decode_step_s=0.01, prefill_token_s=0.001, prefill_tokens=1e9)


def here(missing: int = 10, **fields: Any) -> Here:
    values: dict[str, Any] = {"queued": 0, "queue_limit": 1000, "decoding": False, "share": 0.25}
    return Here(missing=missing, **{**values, "costs": COSTS, **fields})


def there(missing: int = 10, **fields: Any) -> There:
    values: dict[str, Any] = {"queued": 0, "token_s": 0.001, "transfer_s": 0.0}
    return There(missing=missing, **{**values, **fields})


def test_both_costs_are_said() -> None:
    choice = choose(here(20, queued=5), there(100, queued=30, transfer_s=0.5))
    assert choice.why is Why.CHEAPER and choice.local
    assert choice.here_s == pytest.approx(0.025)
    assert choice.there_s == pytest.approx(0.63)


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        (here(10), there(10, transfer_s=0.001), Why.CHEAPER),  # the hand-off is saved
        (here(10, queued=50), there(10, transfer_s=0.001), Why.DEARER),
        (here(10, queued=50), there(10, queued=100), Why.CHEAPER),
        # Beside decodes 2.5 tokens a step of 12.5 ms: five times slower.
        (here(10, decoding=True), there(10, transfer_s=0.001), Why.DEARER),
        (here(10, decoding=True), there(60), Why.CHEAPER),  # most of it is cached here alone
        (here(10, decoding=True), there(10, transfer_s=0.05), Why.CHEAPER),
        (here(600, queued=401), there(5000), Why.QUEUE_FULL),
        (here(600, queued=400), there(5000), Why.CHEAPER),
        (here(1, queue_limit=0), there(5000), Why.SWITCHED_OFF),
        (here(1), there(5000, token_s=0.0), Why.UNMEASURED),
        (here(1, decoding=True, costs=Costs()), there(5000), Why.UNMEASURED),
    ],
)
def test_who_computes(mine: Here, theirs: There, why: Why) -> None:
    choice = choose(mine, theirs)
    assert choice.why is why
    assert (choice.here_s is None) == (why not in (Why.CHEAPER, Why.DEARER))


def test_one_token_a_step_is_the_least() -> None:
    """A decode step of 10 ms leaves 2.5 ms: a token of 100 ms goes all the same, one a step."""
    costs = Costs(decode_step_s=0.01, prefill_token_s=0.1, prefill_tokens=1e9)
    choice = choose(here(10, decoding=True, costs=costs), there())
    assert choice.here_s == pytest.approx(10 * (0.1 + 0.01))


def test_little_measured_leans_on_the_other_side() -> None:
    """Unmeasured, this side counts as fast as the other; a cold first prompt does not decide."""
    assert choose(here(10, costs=Costs()), there(10)) == Choice(Why.CHEAPER, 0.01, 0.01)
    cold = Costs(prefill_token_s=0.1, prefill_tokens=5)
    choice = choose(here(10, costs=cold), there(10))
    assert choice.here_s == pytest.approx(10 * (5 * 0.1 + 256 * 0.001) / 261)


@given(
    missing=st.integers(1, 2000),
    queued=st.integers(0, 2000),
    decoding=st.booleans(),
    share=st.floats(0.01, 3.0),
    more=st.integers(0, 500),
    theirs=st.integers(1, 4000),
    token_s=st.floats(1e-6, 0.1),
    own_s=st.floats(1e-6, 0.1),
    transfer_s=st.floats(0, 10),
)
def test_more_work_on_a_side_never_draws_a_prompt_to_it(
    missing: int,
    queued: int,
    decoding: bool,
    share: float,
    more: int,
    theirs: int,
    token_s: float,
    own_s: float,
    transfer_s: float,
) -> None:
    costs = Costs(0.01, own_s, 1000.0)

    def decide(extra_here: int, extra_there: int, slower: float = 0.0) -> bool:
        return choose(
            here(
                missing,
                queued=queued + extra_here,
                queue_limit=10_000,
                decoding=decoding,
                share=share,
                costs=costs,
            ),
            there(
                theirs,
                queued=extra_there,
                token_s=token_s,
                transfer_s=transfer_s + slower,
            ),
        ).local

    now = decide(0, 0)
    assert decide(0, more) >= now
    assert decide(more, 0) <= now
    assert decide(0, 0, slower=1.0) >= now


def test_the_settings_of_a_colocated_worker() -> None:
    """The baseline is what others do: no bound on prefill, unless one is asked for."""
    assert DecodeSettings(model="m").prefill_share == 0.3
    assert DecodeSettings(model="m", local_prefill=True).prefill_share is None
    asked = DecodeSettings(model="m", local_prefill=True, local_prefill_share=0.3)
    assert asked.prefill_share == 0.3
