"""Placement: who takes a request, and why nobody does."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ContextLengthExceeded, NoWorker
from baton.identity import CompatibilityClass, Identity, Role
from gateway.booking import Booking
from gateway.fleet import SETTLING, Health, Load, Report, Worker
from gateway.placement import Need, Placement
from gateway.policies import WIDTH, Weights, policies
from gateway.roster import Roster

CLASS = CompatibilityClass("m", layers=2, kv_heads=1, head_size=8, block_size=16)
OTHER = CompatibilityClass("m", layers=3, kv_heads=1, head_size=8, block_size=16)
PREFILL = frozenset({Role.PREFILL})


def report(name: str, queued: int = 0, free: int = 100, **fields: Any) -> Report:
    values: dict[str, Any] = {
        "identity": Identity(name, CLASS),
        "roles": frozenset({Role.DECODE}),
        "local_prefill": False,
        "model": "m",
        "max_model_len": 1000,
        "vocab_size": 10,
        "load": Load(queued_tokens=queued, blocks_free=free),
        "transports": (),
        "draining": False,
    }
    return Report(**{**values, **fields})


def worker(name: str, health: Health = Health.HEALTHY, **fields: Any) -> Worker:
    return Worker(f"{name}:1", report(name, **fields), health)


def need(tokens: int = 20, **fields: Any) -> Need:
    return Need(**{"model": "m", "tokens": tokens, "longest": tokens + 10, **fields})


def placement(seed: int = 0, policy: str = "least-queued") -> Placement:
    weights = Weights(cache=1.0, load=1.0, transfer=1.0)
    return Placement(random.Random(seed), policies(policy, weights))


def choose(workers: list[Worker], wanted: Need, seed: int = 0) -> tuple[str, str] | None:
    place = placement(seed).choose(Roster(workers), wanted)
    if place is None:
        return None
    return place.decode.instance_id, place.prefill.instance_id if place.prefill else ""


def test_most_room_and_least_queued() -> None:
    workers = [
        worker("d1", free=50),
        worker("d2", free=80),
        worker("p1", queued=10, roles=PREFILL),
        worker("p2", queued=5, roles=PREFILL),
    ]
    assert choose(workers, need()) == ("d2", "p2")


def test_ties_are_drawn() -> None:
    workers = [worker(f"d{i}", local_prefill=True) for i in range(3)]
    assert {choose(workers, need(), seed) for seed in range(50)} == {
        ("d0", ""),
        ("d1", ""),
        ("d2", ""),
    }


def test_only_one_class_pairs_and_replays_stay_in_it() -> None:
    workers = [
        worker("d1", free=1000),
        worker("d2", identity=Identity("d2", OTHER)),
        worker("p2", identity=Identity("p2", OTHER), roles=PREFILL),
    ]
    assert choose(workers, need()) == ("d2", "p2")
    with pytest.raises(NoWorker, match="layers 3 of the prefill worker, 2 of the decode"):
        choose(workers, need(family=Identity("d1", CLASS).family))


def test_where_bits_are_promised_only_equal_numerics_pair() -> None:
    def promising(name: str, numerics: str) -> Identity:
        return Identity(name, CLASS, numerics, deterministic=True)

    workers = [
        worker("d", identity=promising("d", "1 thread")),
        worker("p", identity=promising("p", "2 threads"), roles=PREFILL),
    ]
    with pytest.raises(NoWorker, match="'2 threads', deterministic, of the prefill"):
        choose(workers, need())
    workers.append(worker("q", identity=promising("q", "1 thread"), roles=PREFILL))
    assert choose(workers, need()) == ("d", "q")


@pytest.mark.parametrize(
    "fields", [{"draining": True}, {"model": "x"}, {"max_model_len": 20}, {"roles": frozenset()}]
)
def test_who_cannot_take_it_is_left_out(fields: dict[str, Any]) -> None:
    with pytest.raises(NoWorker, match="no healthy decode worker"):
        choose([worker("d", local_prefill=True, **fields)], need())


def test_who_failed_is_avoided_unless_alone() -> None:
    one, two = worker("d1", free=100, local_prefill=True), worker("d2", local_prefill=True, free=9)
    assert choose([one, two], need(avoid={"d1"})) == ("d2", "")
    assert choose([one], need(avoid={"d1"})) == ("d1", "")


def test_local_prefill_is_the_last_resort_of_a_replay() -> None:
    workers = [worker("d"), worker("p", roles=PREFILL)]
    assert choose(workers, need(local_prefill=True)) == ("d", "p")
    assert choose(workers, need(local_prefill=True, avoid={"p"})) == ("d", "")
    assert choose(workers, need(avoid={"p"})) == ("d", "p")
    with pytest.raises(NoWorker, match="no healthy prefill worker"):
        choose(workers[:1], need())


def test_the_preferred_worker_goes_first_while_it_has_room() -> None:
    workers = [worker("d1", free=5, local_prefill=True), worker("d2", local_prefill=True)]
    assert choose(workers, need(prefer="d1")) == ("d1", "")
    assert choose(workers, need(100, prefer="d1")) == ("d2", "")


def test_suspects_are_a_last_resort() -> None:
    suspect = worker("d1", Health.SUSPECT, free=1000, local_prefill=True)
    assert choose([suspect, worker("d2", local_prefill=True)], need()) == ("d2", "")
    assert choose([suspect], need()) == ("d1", "")


def test_full_is_not_absent() -> None:
    assert choose([worker("d", free=1, local_prefill=True)], need()) is None
    assert choose([worker("d"), worker("p", free=1, roles=PREFILL)], need()) is None


def test_a_worker_of_both_roles_has_less_room_for_prompts_of_others() -> None:
    load = Load(blocks_free=100, prefill_room=3)
    both = worker("b", roles=frozenset(Role), load=load)
    assert choose([worker("d", free=200), both], need(48)) == ("d", "b")
    assert choose([worker("d", free=200), both], need(49)) is None
    Booking(worker("d"), both, 32, now=10.0)
    assert (both.room_blocks, both.prefill_room) == (98, 1)


def test_a_changed_role_is_no_longer_blamed_for_the_old() -> None:
    changed = worker("p", roles=PREFILL)
    for at in range(3):
        changed.breaker.failed(at + 0.5, at + 0.6)
    assert changed.breaker.refuses
    changed.reported(report("p", roles=PREFILL), now=2.7)
    assert changed.breaker.refuses
    changed.reported(report("p"), now=2.8)
    assert not changed.breaker.refuses


def test_placements_count_until_they_are_reported() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 30, now=10.0)
    assert (decode.room_blocks, decode.queued_tokens) == (98, 0)
    assert (prefill.room_blocks, prefill.queued_tokens) == (98, 30)
    prefill.reported(report("p"), now=10.0 + SETTLING / 2)
    assert prefill.queued_tokens == 30, "too early to be in the report"
    booking.started()
    assert (prefill.room_blocks, prefill.queued_tokens) == (98, 0), "its KV is still to be taken"
    assert booking.handed_over()
    assert not booking.handed_over()
    assert (prefill.room_blocks, prefill.queued_tokens) == (100, 0)
    booking.ended()
    assert decode.room_blocks == 100
    for each in (decode, prefill):
        each.reported(report("x", queued=7), now=20.0)
        assert (each.room_blocks, each.queued_tokens) == (100, 7)


def test_what_a_prompt_gave_back_does_not_hide_the_next_one() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 30, now=10.0)
    prefill.reported(report("p", queued=30), now=10.2)
    assert prefill.queued_tokens == 30
    booking.started()
    assert prefill.queued_tokens == 0, "it said so before it was through"
    prefill.reported(report("p"), now=10.201)
    Booking(decode, prefill, 40, now=10.6)
    assert prefill.queued_tokens == 40, "an idle worker says nothing new for a second"


def test_who_is_through_before_it_reports_is_not_counted_twice() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 30, now=10.0)
    booking.started()
    prefill.reported(report("p"), now=10.05)
    assert (prefill.room_blocks, prefill.queued_tokens) == (98, 0)
    prefill.reported(report("p", free=98), now=10.2)
    assert (prefill.room_blocks, prefill.queued_tokens) == (98, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["place", "start", "hand over", "end", "report"]),
            st.integers(0, 99),
            st.sampled_from([0.0, SETTLING / 3, 2 * SETTLING]),
        ),
        max_size=60,
    )
)
def test_books_are_exact_where_workers_hear_in_time(acts: list[tuple[str, int, float]]) -> None:
    """Reports show what was placed SETTLING before, and not what we know to be over."""
    decode, prefill, now = worker("d", free=10_000), worker("p", free=10_000, roles=PREFILL), 0.0
    live: list[list[Any]] = []  # booking, when, tokens, those still queued and held at the prefill
    for act, number, later in acts:
        now += later
        if act == "place":
            tokens = 16 * number + 1
            live.append([Booking(decode, prefill, tokens, now), now, tokens, tokens, number + 1])
        elif act == "report":
            old = [one for one in live if one[1] < now - SETTLING]
            queued, held = sum(one[3] for one in old), sum(one[4] for one in old)
            prefill.reported(report("p", queued, 10_000 - held), now)
            decode.reported(report("d", 0, 10_000 - sum(one[2] // 16 + 1 for one in old)), now)
        elif live:
            one = live[number % len(live)]
            if act == "start":
                one[0].started()
                one[3] = 0
            elif act == "hand over":
                one[0].handed_over()
                one[4] = 0
            else:
                one[0].ended()
                live.remove(one)
        assert prefill.queued_tokens == sum(one[3] for one in live)
        assert prefill.room_blocks == 10_000 - sum(one[4] for one in live)
        assert decode.room_blocks == 10_000 - sum(one[2] // 16 + 1 for one in live)


def test_what_is_cached_is_not_queued() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 30, now=10.0, cached=16)
    assert (prefill.queued_tokens, prefill.room_blocks) == (14, 98)
    booking.ended()
    assert (prefill.queued_tokens, prefill.room_blocks) == (0, 100)


def test_choices_take_the_prompt_once_and_a_block_each() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 40, now=1.0, choices=4)
    assert decode.room_blocks == 100 - 2 - 4, "one of them has the partial block"
    assert prefill.room_blocks == 100 - 3
    booking.ended()
    assert decode.room_blocks == 100 - 2 - 3
    for _ in range(3):
        booking.ended()
    assert (decode.room_blocks, prefill.room_blocks) == (100, 100)


def test_the_prefill_side_has_its_room_back_once_a_choice_goes_on() -> None:
    decode, prefill = worker("d"), worker("p", roles=PREFILL)
    booking = Booking(decode, prefill, 40, now=1.0, choices=3, cached=16)
    assert (prefill.room_blocks, prefill.queued_tokens) == (97, 24), "what is cached is pinned"
    booking.started()
    booking.ended()
    assert (prefill.room_blocks, prefill.queued_tokens) == (97, 0), "two are to go on"
    assert booking.handed_over()
    assert not booking.handed_over(), "they share it"
    for _ in range(2):
        booking.ended()
    assert (decode.room_blocks, prefill.room_blocks) == (100, 100)


def test_room_for_every_choice_or_none() -> None:
    small, large = worker("d1", free=8, local_prefill=True), worker("d2", local_prefill=True)
    large.refused()
    assert choose([small, large], need(40, choices=6)) == ("d1", "")
    assert choose([small, large], need(40, choices=7)) is None, "until the large one has room"
    with pytest.raises(ContextLengthExceeded, match=r"7 choices of 40 tokens .* 9 .* has 8"):
        choose([small], need(40, choices=7))


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.booleans(), st.booleans(), st.integers(1, 5)),
        max_size=20,
    )
)
def test_bookings_cancel_out(steps: list[tuple[int, bool, bool, int]]) -> None:
    decode, prefill = worker("d", free=10_000), worker("p", free=10_000, roles=PREFILL)
    for number, (tokens, remote, started, choices) in enumerate(steps):
        booking = Booking(decode, prefill if remote else None, tokens, float(number), choices)
        if started:
            booking.started()
        for _ in range(choices):
            booking.ended()
    for each in (decode, prefill):
        assert (each.room_blocks, each.queued_tokens) == (10_000, 0)


def test_a_doubted_worker_gets_one_request_at_a_time() -> None:
    decode = worker("d", local_prefill=True)
    decode.refused()
    assert not decode.has_room(1)
    decode.reported(report("d", local_prefill=True), now=1.0)
    assert decode.has_room(1)
    booking = Booking(decode, None, 1, now=1.0)
    assert not decode.has_room(1)
    booking.started()
    assert decode.has_room(1)
    Booking(decode, None, 1, now=3.0)
    assert decode.has_room(1)


def test_limits_of_the_fleet() -> None:
    workers = [worker("d", max_model_len=50), worker("p", max_model_len=40, roles=PREFILL)]
    roster = Roster(workers)
    assert (roster.longest_sequence, roster.longest_prompt) == (50, 40)
    assert (Roster().longest_sequence, Roster().longest_prompt) == (None, None)


def thousand(**fields: Any) -> list[Worker]:
    decode = [worker(f"d{i}", **fields) for i in range(500)]
    return decode + [worker(f"p{i}", roles=PREFILL, **fields) for i in range(500)]


@pytest.mark.parametrize("fields", [{}, {"free": 1}], ids=["room", "full"])
def test_choosing_among_a_thousand_is_quick(fields: dict[str, Any]) -> None:
    """100 us is the goal (`python -m bench.placement`); a busy machine is slower, looking at
    every pair of workers was a thousand times as slow."""
    roster, placed, took = Roster(thousand(**fields)), placement(), []
    for _ in range(20):
        started = time.perf_counter()
        placed.choose(roster, need())
        took.append(time.perf_counter() - started)
    assert min(took) < 2e-3


def test_in_a_large_fleet_everyone_gets_work_and_no_room_is_overlooked() -> None:
    workers = thousand()
    roster, placed = Roster(workers), placement()
    for number in range(5 * 500):
        place = placed.choose(roster, need())
        assert place is not None and place.prefill is not None
        Booking(place.decode, place.prefill, 20, now=float(number))
    taken = [100 - w.room_blocks for w in workers]
    assert max(taken) - min(taken) <= 10, "five requests of two blocks each, give or take five"
    for each in workers[:500]:
        each.full = each is not workers[250]
    place = placed.choose(roster, need())
    assert place is not None and place.decode is workers[250]


@given(st.integers(1, WIDTH), st.data())
def test_in_a_small_fleet_the_best_of_all_is_chosen(count: int, data: st.DataObject) -> None:
    free = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    workers = [worker(f"d{i}", free=f, local_prefill=True) for i, f in enumerate(free)]
    chosen = choose(workers, need(20))
    if max(free) < 2:
        assert chosen is None
    else:
        assert chosen is not None and free[int(chosen[0][1:])] == max(free)
