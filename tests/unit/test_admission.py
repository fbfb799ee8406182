"""Who is taken on, who is refused and when they may come again."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import DeadlineOutOfReach, InvalidRequest, QueueFull
from baton.keys import KeyLimits
from baton.sampling import SamplingSpec
from gateway.admission import Admission, Pace, QueueLimits, pace
from gateway.fleet import Load, Role, Worker
from gateway.keys import Caller
from gateway.presence import Presence
from gateway.quota import Quota
from gateway.requests import ValidRequest
from gateway.waiting import PRIORITY_TOKENS, WaitingRoom
from tests.unit.test_gateway_placement import PREFILL, worker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(**seconds: float) -> Deadlines:
    return Deadlines(
        **{name: seconds.get(name, math.inf) for name in Deadlines.__dataclass_fields__}
    )


def request(tokens: int, deadlines: Deadlines = UNLIMITED) -> ValidRequest:
    return ValidRequest(
        request_id="r",
        created=0,
        kind="completion",
        model="m",
        prompt_ids=(0,) * tokens,
        sampling=SamplingSpec(),
        stop=(),
        deadlines=deadlines,
        caller=Caller("", Quota(KeyLimits(), lambda: 0.0)),
    )


class Queue:
    """An admission whose fleet and time the test sets."""

    def __init__(self, tokens: int = 1000, requests: int = 100) -> None:
        self.clock = Clock()
        self.pace = Pace()
        self.room = WaitingRoom(self.clock)
        self.gauge = Gauge("queued", "", registry=CollectorRegistry())
        self.admission = Admission(
            QueueLimits(tokens=tokens, requests=requests),
            self.room,
            lambda: self.pace,
            self.gauge,
            self.clock,
        )

    def admit(self, tokens: int, deadlines: Deadlines = UNLIMITED, priority: int = 0) -> None:
        self.clock.now += 1
        self.admission.admit(request(tokens, deadlines), self.room.arrive(priority))


def test_a_full_queue_says_when_enough_will_have_drained() -> None:
    queue = Queue(tokens=1000)
    queue.pace = Pace(rate=50.0)
    queue.admit(2000)  # an empty queue takes any one request
    with pytest.raises(QueueFull, match=r"holds 2000 .* 100 more .* limit of 1000") as full:
        queue.admit(100)
    assert full.value.retry_after == pytest.approx(1100 / 50)
    assert queue.admission.tokens == 2000


def test_short_prompts_are_bounded_in_number() -> None:
    queue = Queue(requests=3)
    for _ in range(3):
        queue.admit(1)
    with pytest.raises(QueueFull, match="holds 3 requests"):
        queue.admit(1)


@pytest.mark.parametrize("phase", ["first_token", "total"])
def test_what_cannot_be_in_time_is_refused_at_once(phase: str) -> None:
    queue = Queue()
    queue.pace = Pace(begin=4.0, rate=100.0)
    queue.admit(10, limits(**{phase: 6.0}))
    with pytest.raises(DeadlineOutOfReach, match=f"4 s of work.*5 s allowed.*{phase}") as late:
        queue.admit(10, limits(**{phase: 5.0}))
    assert late.value.retry_after == pytest.approx(4.0 - 0.75 * 5.0)
    queue.pace = Pace(begin=0.0, rate=100.0)
    queue.admit(900, limits(**{phase: 0.001}))  # its own prompt may all be cached


async def test_waiting_for_room_counts_by_what_was_let_through() -> None:
    queue = Queue()
    free = 0

    def find() -> bool | None:
        nonlocal free
        free -= 1
        return True if free >= 0 else None

    waiting = [
        asyncio.create_task(queue.room.take_turn(queue.room.arrive(0), 100, find)) for _ in range(6)
    ]
    await asyncio.sleep(0)
    assert queue.room.rate == 0
    for _ in range(2):
        free = 1
        queue.clock.now += 10
        queue.room.changed()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(queue.room) == 4
    assert queue.room.rate == pytest.approx(10)
    queue.admit(1, limits(queue=60))
    with pytest.raises(DeadlineOutOfReach, match="phase 'queue'"):
        queue.admit(1, limits(queue=40))
    queue.admit(1, limits(queue=40), priority=1)  # nobody is ahead of it
    queue.clock.now += 80
    assert queue.room.rate < 3, "nobody was let through all the while"
    free = 10
    queue.room.changed()
    await asyncio.gather(*waiting)


async def test_priorities_go_first_and_age() -> None:
    room = WaitingRoom(Clock())
    served: list[str] = []
    open_ = False

    async def wait(name: str, priority: int, tokens: int) -> None:
        await room.take_turn(room.arrive(priority), tokens, lambda: True if open_ else None)
        served.append(name)

    tasks = [asyncio.create_task(wait(*who)) for who in (("a", 0, 5), ("b", -3, 5), ("c", 2, 5))]
    await asyncio.sleep(0)
    open_ = True
    room.changed()
    await asyncio.gather(*tasks)
    assert served == ["c", "a", "b"]
    old = room.arrive(0)
    assert room.arrive(1) < old
    await room.take_turn(room.arrive(0), PRIORITY_TOKENS, lambda: True)
    assert old < room.arrive(1), "made up for by waiting"


def test_pace_is_that_of_the_least_busy_worker() -> None:
    def prefill(name: str, queued: int, token: float, **rest: Any) -> Worker:
        load = Load(queued_tokens=queued, prefill_token=token)
        return worker(name, **{"roles": PREFILL, "load": load, **rest})

    slow, quick = prefill("p1", 1000, 0.01), prefill("p2", 4000, 0.001)
    assert pace([slow, quick, worker("d")]) == Pace(pytest.approx(4.0), pytest.approx(1100.0))
    colocated = prefill("c", 200, 0.01, roles=frozenset({Role.DECODE}), local_prefill=True)
    assert pace([slow, colocated]).begin == pytest.approx(2.0)
    assert pace([slow, prefill("new", 500, 0.0)]).begin == 0, "it may be quick"
    assert pace([slow, prefill("leaving", 0, 0.001, draining=True)]).begin == pytest.approx(10.0)
    assert pace([]) == Pace()
    stepping = Load(queued_tokens=1000, prefill_token=0.01, last_step=0.5)
    assert prefill("p", 0, 0, load=stepping).begins_in == pytest.approx(10.5)
    assert prefill("p", 0, 0, load=Load(prefill_token=0.01, last_step=0.5)).begins_in == 0


def test_workers_that_were_there_a_moment_ago() -> None:
    clock, there, changes = Clock(), False, 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    presence = Presence(lambda: there, 5.0, clock, changed)
    presence.look()
    assert not presence.lately, "never yet"
    clock.now += 1
    there = True
    presence.look()
    there = False
    for passed, lately in ((0.0, True), (3.0, True), (4.9, True), (5.1, False)):
        clock.now = 101.0 + passed
        presence.look()
        assert presence.lately is lately
    assert changes == 6


def test_deadlines_asked_for_stay_within_the_gateways() -> None:
    ours = limits(first_token=10, total=60)
    assert ours.tightened({"first_token": 2, "queue": 1}) == limits(
        first_token=2, total=60, queue=1
    )
    for wrong, says in (
        ({"total": 61}, "'total' is 61 s, but must be at most 60 s"),
        ({"total": math.inf}, "'total' is inf s"),
        ({"queue": 0}, "above 0"),
        ({"queue": math.nan}, "above 0"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            ours.tightened(wrong)


def test_what_remains_for_a_worker() -> None:
    whole = limits(prefill=8, first_token=10, transfer=50, inter_token=7, total=20)
    before = whole.after(4, started=False)
    assert (before.prefill, before.first_token, before.transfer, before.total) == (6, 6, 16, 16)
    replay = whole.after(15, started=True)
    assert (replay.prefill, replay.first_token, replay.inter_token) == (5, math.inf, 5)
    assert whole.after(99, started=False).total > 0
