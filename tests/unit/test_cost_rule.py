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
    values: dict[str, Any] = {"queued": 0, "queue_limit": None, "decoding": False}
    return Here(missing=missing, **{**values, "target_s": 0.014, "costs": COSTS, **fields})


def there(missing: int = 10, **fields: Any) -> There:
    values: dict[str, Any] = {"queued": 0, "token_s": 0.001, "transfer_s": 0.0}
    return There(missing=missing, **{**values, **fields})


def test_both_costs_are_said() -> None:
    """Of 14 ms a step that decodes leaves 4 to a prompt: 25 tokens share six and a quarter."""
    choice = choose(here(20, queued=5), there(100, queued=30, transfer_s=0.5))
    assert choice.why is Why.CHEAPER and choice.local
    assert choice.here_s == pytest.approx(0.025 + 0.0625)
    assert choice.there_s == pytest.approx(0.63)


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        # Three and a half times slower, if sequences decode or are still to come.
        (here(10), there(10, transfer_s=0.001), Why.DEARER),
        (here(10), there(10, transfer_s=0.025), Why.CHEAPER),  # the hand-off is saved
        (here(10), there(10, queued=26), Why.CHEAPER),  # it would wait there
        (here(10), there(10, queued=24), Why.DEARER),
        (here(10, queued=10), there(10, queued=58), Why.DEARER),  # and here
        (here(10), there(36), Why.CHEAPER),  # most of it is cached here alone
        (here(10, decoding=True), there(10, queued=26), Why.CHEAPER),
        (here(10, decoding=True), there(10, queued=24), Why.DEARER),
        # A step is shared whole with those that decode, however short the prompt.
        (here(1, decoding=True), there(10), Why.DEARER),
        (here(1), there(10), Why.CHEAPER),
        (here(600, queued=401, queue_limit=1000), there(5000), Why.QUEUE_FULL),
        (here(600, queued=400, queue_limit=1000), there(5000), Why.CHEAPER),
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
    """A decode step of 10 ms leaves 4 ms: a token of 100 ms goes all the same, one a step."""
    costs = Costs(decode_step_s=0.01, prefill_token_s=0.1, prefill_tokens=1e9)
    choice = choose(here(10, decoding=True, costs=costs), there())
    assert choice.here_s == pytest.approx(10 * (0.1 + 0.01))


def test_steps_beyond_the_target_leave_a_prompt_less() -> None:
    """Of 10 ms steps and a target of 5 ms it gets 3 tokens each: what is long goes elsewhere, a
    few tokens after a long prefix stay."""
    mine = here(6, decoding=True, target_s=0.005)
    assert choose(mine, there(20)).here_s == pytest.approx(0.006 + 2 * 0.01)
    assert choose(mine, there(20)).why is Why.DEARER
    assert choose(mine, there(500)).why is Why.CHEAPER


def test_a_wider_target_draws_prompts_here() -> None:
    """The same prompt, the same wait elsewhere: what was promised to those that decode decides."""
    made = [
        choose(here(100, decoding=True, target_s=t), there(100, queued=60)) for t in (0.02, 0.06)
    ]
    assert [one.why for one in made] == [Why.DEARER, Why.CHEAPER]
    assert [one.here_s for one in made] == [pytest.approx(0.2), pytest.approx(0.12)]


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
    target_s=st.floats(0.001, 1.0),
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
    target_s: float,
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
                decoding=decoding,
                target_s=target_s,
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


def test_the_target_is_one_for_all_workers_that_decode() -> None:
    """Also for a colocated one: long prompts stop those that decode there like anywhere else."""
    for colocated in (False, True):
        assert DecodeSettings(model="m", local_prefill=colocated).itl_target_s == 0.06
    assert DecodeSettings(model="m", itl_target_ms=25).itl_target_s == 0.025
