"""When --auto-roles changes a role, and that it does not change it back for the same load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.identity import ROLES, CompatibilityClass, Identity, Role
from gateway.fleet import Health, Load, Report, Worker
from gateway.role_policy import FULL, LASTING, LONG, ROOMY, SHORT, Balance, Move
from gateway.roster import Pool, Roster

CLASS = CompatibilityClass("m", layers=2, kv_heads=1, head_size=8, block_size=16)
OURS, HOLD, BATCH = "gateway", 20.0, 64
PREFILL, DECODE, BOTH = ROLES["prefill"], ROLES["decode"], ROLES["both"]


def worker(name: str, roles: frozenset[Role], since: float = 1000.0) -> Worker:
    report = Report(
        identity=Identity(name, CLASS),
        roles=roles,
        local_prefill=False,
        model="m",
        max_model_len=1000,
        vocab_size=100,
        load=Load(blocks_free=1000, prefill_token=0.001),
        transports=(),
        draining=False,
        possible_roles=BOTH,
        roles_since=since,
        controller=OURS,
        max_running=BATCH,
    )
    return Worker(name, report)


def loaded(one: Worker, *, queue: float = 0.0, fullness: float = 0.0, **other: object) -> Worker:
    """The same with so many seconds of prompts, or so full a batch, and other fields changed."""
    load = replace(
        one.report.load, queued_tokens=round(queue * 1000), running=round(fullness * BATCH)
    )
    return Worker(one.address, replace(one.report, load=load, **other))  # type: ignore[arg-type]


@dataclass
class Fleet:
    """Workers that change when told to, under a load that the test sets."""

    roles: dict[str, frozenset[Role]]
    changed: dict[str, float] = field(default_factory=dict)
    moves: list[tuple[float, Role]] = field(default_factory=list)

    def count(self, role: Role) -> int:
        return sum(role in roles for roles in self.roles.values())

    def pool(self, now: float, queue: float, fullness: float) -> Pool:
        workers = [
            loaded(
                worker(name, roles, now - self.changed.get(name, -1000.0)),
                queue=queue * (Role.PREFILL in roles),
                fullness=fullness * (Role.DECODE in roles),
            )
            for name, roles in self.roles.items()
        ]
        (pool,) = Roster(workers).all_pools.values()
        return pool

    def obey(self, move: Move | None, now: float) -> None:
        if move is not None:
            name = move.worker.instance_id
            assert self.roles[name] != frozenset({move.role})
            self.roles[name], self.changed[name] = frozenset({move.role}), now
            self.moves.append((now, move.role))


def fleet(prefill: int, decode: int) -> Fleet:
    names = {f"p{i}": PREFILL for i in range(prefill)} | {f"d{i}": DECODE for i in range(decode)}
    return Fleet(names)


sides = st.integers(1, 5)
queues = st.lists(st.floats(0, 20), min_size=10, max_size=40)


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.floats(0, 6), queues)
def test_the_same_load_never_calls_for_both_changes(
    prefill: int, decode: int, work: float, waits: Sequence[float]
) -> None:
    """``work`` is what decodes, in full workers. Whatever the prompts do: back and forth is out."""
    made, balance = fleet(prefill, decode), Balance(OURS, HOLD)
    for tick, wait in enumerate(wait for wait in waits for _ in range(8)):
        fullness = min(1.0, work / made.count(Role.DECODE))
        pool = made.pool(float(tick), wait, fullness)
        made.obey(balance.decide(pool, float(tick)), float(tick))
    assert len({role for _, role in made.moves}) <= 1
    assert len(made.moves) < prefill + decode


ticks = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1), st.integers(1, 30)), max_size=20)


@settings(deadline=None, max_examples=50)
@given(sides, sides, ticks)
def test_whatever_comes_changes_are_apart_and_each_side_keeps_one(
    prefill: int, decode: int, course: Sequence[tuple[float, float, int]]
) -> None:
    made, balance, now = fleet(prefill, decode), Balance(OURS, HOLD), 0.0
    for wait, fullness, seconds in course:
        for _ in range(seconds):
            now += 1.0
            made.obey(balance.decide(made.pool(now, wait, fullness), now), now)
            assert made.count(Role.PREFILL) and made.count(Role.DECODE)
    times = [at for at, _ in made.moves]
    assert all(b - a >= HOLD for a, b in pairwise(times))


def decided(*workers: Worker, lasting: float = LASTING) -> Move | None:
    """The decision once this has lasted so long."""
    (pool,) = Roster(workers).all_pools.values()
    balance = Balance(OURS, HOLD)
    assert balance.decide(pool, 0.0) is None
    return balance.decide(pool, lasting)


def pair(**decode: float) -> list[Worker]:
    """Two of each; what decodes is as full as said."""
    return [
        *(loaded(worker(f"p{i}", PREFILL)) for i in range(2)),
        *(loaded(worker(f"d{i}", DECODE), **decode) for i in range(2)),
    ]


def test_the_side_that_waits_gets_who_has_least_to_do() -> None:
    full = loaded(worker("d0", DECODE), fullness=FULL + 0.1)
    idle, busy = worker("p0", PREFILL), loaded(worker("p1", PREFILL), queue=0.7 * SHORT)
    move = decided(full, idle, busy)
    assert move is not None and (move.worker, move.role) == (idle, Role.DECODE)
    waits = loaded(worker("p0", PREFILL), queue=2 * LONG)
    less, more = (loaded(worker(f"d{f}", DECODE), fullness=f) for f in (0.1, 0.3))
    move = decided(waits, more, less)
    assert move is not None and (move.worker, move.role) == (less, Role.PREFILL)


def test_a_burst_changes_nothing() -> None:
    workers = pair(fullness=1.0)
    assert decided(*workers, lasting=LASTING - 0.1) is None
    assert decided(*workers) is not None


def test_nobody_is_taken_from_a_side_that_needs_all() -> None:
    waits = loaded(worker("p0", PREFILL), queue=9.0)
    assert decided(waits, *(loaded(worker(d, DECODE), fullness=0.8 * ROOMY) for d in "de")) is None
    assert decided(waits, loaded(worker("d", DECODE))) is None, "the last one"
    longest = loaded(worker("d", DECODE), max_model_len=2000)
    other = loaded(worker("e", DECODE), fullness=0.2)
    move = decided(waits, longest, other)
    assert move is not None and move.worker is other, "the longest requests need the first"


@pytest.mark.parametrize(
    "changes",
    [
        {"controller": "another"},
        {"roles_since": HOLD - 1},
        {"possible_roles": PREFILL},
    ],
)
def test_who_may_not_is_left_alone(changes: dict[str, object]) -> None:
    prefills = [loaded(worker(f"p{i}", PREFILL), **changes) for i in range(2)]  # type: ignore[arg-type]
    assert decided(*prefills, loaded(worker("d", DECODE), fullness=1.0)) is None


def test_nothing_is_decided_while_somebody_is_silent() -> None:
    workers = pair(fullness=1.0)
    workers[0].health = Health.SUSPECT
    assert decided(*workers) is None


def test_sequences_that_wait_for_kv_do_not_make_a_decode_worker_full() -> None:
    waiting = worker("d", DECODE)
    load = Load(blocks_owned=950, blocks_free=50, running=2, waiting=60)
    stuck = Worker("d", replace(waiting.report, load=load))
    assert decided(worker("p", PREFILL), worker("q", PREFILL), stuck) is None
