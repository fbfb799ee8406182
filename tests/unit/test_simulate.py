"""The simulator: its formulas against steps, its fast path against the real scheduler's steps, and
that every request ends once."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.settings import UpSettings
from bench import costs
from bench.costs import Costs, CostsError
from bench.plan.search import Goal, Search, first_to_break
from bench.simulate.__main__ import main as simulate_main
from bench.simulate.clock import Clock
from bench.simulate.counted import Counted
from bench.simulate.fleet import Fleet, Setup, Simulation
from bench.simulate.gaps import Gaps
from bench.simulate.jobs import Job, at_rate
from bench.simulate.network import Network, Port
from bench.simulate.outcome import Outcome, Slo
from bench.simulate.prices import Prices
from model.cache.blocks import BlockPool

COSTS = Costs(
    step_s=0.004,
    prefill_token_s=2e-4,
    prefill_pair_s=1e-8,
    decode_s=3e-4,
    context_token_s=1e-7,
    token_bytes=20_000,
    bytes_per_s=1e9,
    transfer_s=0.001,
    hop_s=0.0005,
    request_s=0.001,
)
SLO = Slo(ttft=0.5, tpot=0.05)


def setup(fleet: Fleet, blocks: int = 1000, **changed: object) -> Setup:
    given = {name: value for name, value in changed.items() if name in UpSettings.model_fields}
    made = Setup(
        fleet=fleet,
        settings=UpSettings.model_validate({"model": "m", **given}),
        costs=COSTS,
        blocks=blocks,
        longest=1024,
    )
    return replace(made, **{n: v for n, v in changed.items() if n not in given})  # type: ignore[arg-type]


def load(count: int, rate: float, seed: int = 0, longest: int = 400) -> list[Job]:
    rng, at, jobs = random.Random(seed), 0.0, []
    for number in range(count):
        jobs.append(Job(number, at, rng.randint(1, longest), rng.randint(1, 80)))
        at += rng.expovariate(rate)
    return jobs


def run(made: Setup, jobs: list[Job]) -> Outcome:
    simulation = Simulation(made)
    outcome = simulation.run(jobs)
    assert simulation.check() == []
    assert len(outcome.ttft) + outcome.refused.total() == outcome.asked == len(jobs)
    return outcome


@pytest.mark.parametrize("fleet", [Fleet(prefill=2, decode=3), Fleet(colocated=4)], ids=str)
def test_leaps_come_to_what_steps_come_to(fleet: Fleet) -> None:
    jobs = load(1000, 25.0)
    leaping = run(setup(fleet), jobs)
    stepping = run(setup(fleet, leaps=False), jobs)
    assert leaping.refused.total() == 0
    assert leaping.arrived == stepping.arrived
    assert leaping.ttft == stepping.ttft
    assert leaping.tpot == stepping.tpot
    assert leaping.gaps == stepping.gaps
    assert leaping.local == stepping.local
    assert leaping.busy == stepping.busy


def test_leaps_come_to_what_steps_come_to_beside_busy_neighbours() -> None:
    slow = replace(COSTS, prompt_beside=0.05, decode_beside=0.1)
    made, jobs = setup(Fleet(prefill=2, decode=3), costs=slow), load(200, 12.0)
    leaping, stepping = run(made, jobs), run(replace(made, leaps=False), jobs)
    alone = run(setup(Fleet(prefill=2, decode=3)), jobs)
    assert (leaping.ttft, leaping.tpot) == (stepping.ttft, stepping.tpot)
    assert leaping.gaps == stepping.gaps
    assert leaping.busy["decode"] > 1.1 * alone.busy["decode"]


def test_a_neighbour_that_computes_makes_steps_longer_while_it_does() -> None:
    costs = Costs(step_s=0.01, prefill_token_s=0.001, prompt_beside=0.5, decode_beside=1.0)
    made = setup(Fleet(prefill=1, decode=1), costs=costs, local_prefill_queue=0)
    alone = run(made, [Job(0, 0.0, 40, 101)])
    assert (alone.ttft[0], alone.tpot[0]) == (pytest.approx(0.05), pytest.approx(0.01))
    beside = run(made, [Job(0, 0.0, 40, 101), Job(1, 0.203, 110, 1)])
    assert beside.ttft.tolist() == [pytest.approx(1.5 * 0.12), pytest.approx(0.05)]
    # From 0.203 s to 0.383; the steps that begin at 0.21, 0.23, ... 0.37 take 0.02 s.
    assert 100 * beside.tpot[1] == pytest.approx(1.0 + 9 * 0.01)


@pytest.mark.parametrize(
    ("fleet", "seed"), [(Fleet(prefill=2, decode=3), 2), (Fleet(colocated=4), 1)], ids=str
)
def test_leaps_come_to_what_steps_come_to_where_memory_is_short(fleet: Fleet, seed: int) -> None:
    jobs, short = load(250, 40.0, seed), setup(fleet, blocks=64)
    leaping, stepping = run(short, jobs), run(replace(short, leaps=False), jobs)
    assert leaping.preempted == stepping.preempted > 15
    assert (leaping.ttft, leaping.tpot) == (stepping.ttft, stepping.tpot)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    blocks=st.integers(32, 120),
    prefill=st.integers(0, 2),
    caching=st.booleans(),
)
def test_every_request_ends_once(seed: int, blocks: int, prefill: int, caching: bool) -> None:
    """Also where memory is so short that sequences are preempted."""
    fleet = Fleet(prefill=prefill, decode=2) if prefill else Fleet(colocated=2)
    jobs = load(40, 60.0, seed)
    if caching:
        jobs = [replace(job, prompt=tuple(range(job.tokens))) for job in jobs]
    placement = "prefix" if caching else "least-queued"
    run(setup(fleet, blocks, caching=caching, placement=placement), jobs)


def test_memory_that_runs_short_is_won_by_preemption() -> None:
    jobs = [Job(n, 0.001 * n, 100, 200) for n in range(8)]
    outcome = run(setup(Fleet(colocated=1), 60), jobs)
    assert outcome.preempted and len(outcome.ttft) == 8


def test_prompts_that_begin_alike_are_found() -> None:
    jobs = [Job(n, 1.0 * n, 320, 4, tuple(range(320))) for n in range(10)]
    outcome = run(setup(Fleet(prefill=2, decode=2), caching=True, placement="prefix"), jobs)
    assert outcome.cached_tokens >= 8 * 304


def test_who_is_to_go_where_others_of_its_session_went_does() -> None:
    jobs = [Job(n, 0.3 * n, 320, 4, tuple(range(n % 4, 320 + n % 4))) for n in range(40)]
    for placement, least, most in (("affinity", 36 * 304, 38 * 320), ("least-queued", 0, 34 * 320)):
        made = setup(Fleet(colocated=4), caching=True, placement=placement)
        assert least <= run(made, jobs).cached_tokens <= most


@given(st.lists(st.integers(-3, 9), max_size=40))
def test_blocks_that_are_counted_are_as_many_as_those_told_apart(wanted: list[int]) -> None:
    """Above 0 so many are taken; else those of a table are given up, or quarantined for a while,
    or these come back."""
    counted, known = Counted(24), BlockPool(24)
    tables, held = list[tuple[list[int], list[int]]](), list[tuple[list[int], list[int]]]()
    for number in wanted:
        if number > 0:
            mine, theirs = counted.allocate(number), known.allocate(number)
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                tables.append((mine, theirs))
        elif number < 0 and tables:
            table = tables.pop(0)
            if number < -1:
                held.append(table)
            for pool, blocks in zip((counted, known), table, strict=True):
                if number < -1:
                    pool.hold(blocks)
                pool.release(blocks)
        elif held:
            for pool, blocks in zip((counted, known), held.pop(), strict=True):
                pool.unhold(blocks)
        assert counted.counts() == known.counts()
        assert (counted.available, counted.num_blocks) == (known.available, 24)
    owners, holds = (sum(len(mine) for mine, _ in each) for each in (tables, held))
    assert counted.check({0: owners}, {0: holds}) == []


def test_what_cannot_be_served_in_time_is_refused_by_the_gateway() -> None:
    jobs = load(200, 1e4)
    outcome = run(setup(Fleet(prefill=1, decode=1), max_queue_requests=20), jobs)
    assert outcome.refused["queue_full"] > 100
    assert first_to_break(outcome, Goal(slo=SLO, share=0.9)).startswith("prefill")


@given(st.lists(st.integers(0, 50)))
def test_events_happen_in_order(times: list[int]) -> None:
    clock, seen = Clock(), list[tuple[int, int]]()
    for number, when in enumerate(times):
        clock.at(when, lambda number=number: seen.append((clock.now, number)))  # type: ignore[misc]
    clock.run()
    assert seen == sorted((when, number) for number, when in enumerate(times))
    assert clock.happened == len(times)


def test_nothing_happens_before_now() -> None:
    clock = Clock()
    clock.at(5, lambda: None)
    clock.run()
    with pytest.raises(ValueError, match="4 ps has passed"):
        clock.at(4, lambda: None)


@given(
    steps=st.integers(1, 60),
    sequences=st.integers(1, 64),
    context=st.integers(0, 9000),
    at=st.data(),
)
def test_steps_at_once_take_what_they_take_one_by_one(
    steps: int, sequences: int, context: int, at: st.DataObject
) -> None:
    prices = Prices.of(COSTS)
    each = [prices.decodes(sequences, context + i * sequences) for i in range(steps)]
    assert prices.steps(steps, sequences, context) == sum(each)
    time = at.draw(st.integers(0, sum(each)))
    over = prices.within(time, sequences, context, steps)
    assert sum(each[:over]) <= time
    assert over == steps or sum(each[: over + 1]) > time


@given(
    first=st.integers(0, 10**13),
    growth=st.integers(0, 10**10),
    steps=st.integers(1, 80),
    weight=st.integers(1, 9),
)
def test_gaps_at_once_count_what_each_counts(
    first: int, growth: int, steps: int, weight: int
) -> None:
    once, each = Gaps(), Gaps()
    once.add(first, weight, growth, steps)
    for step in range(steps):
        for _ in range(weight):
            each.add(first + step * growth, 1)
    assert once == each and once.count == each.count


def test_percentiles_of_gaps_are_as_exact_as_their_buckets() -> None:
    gaps = Gaps()
    for millisecond in range(1, 101):
        gaps.add(millisecond * 10**9, 1)
    assert gaps.percentile(50) == pytest.approx(0.050, rel=0.006)
    assert gaps.percentile(99) == pytest.approx(0.099, rel=0.006)


def beside_streams(every: float | None, **changed: object) -> Outcome:
    """Four answers of many tokens and, one ``every`` so many seconds, ten prompts of 900."""
    jobs = [Job(n, 0.01 * n, 100, 800) for n in range(4)]
    if every is not None:
        jobs += [Job(4 + n, 1.0 + n * every, 900, 2) for n in range(10)]
    return run(setup(Fleet(prefill=1, decode=1), itl_target_ms=20, **changed), jobs)


def test_long_prompts_leave_those_who_decode_alone_while_prefill_keeps_up() -> None:
    alone, beside = beside_streams(None), beside_streams(0.25)
    assert beside.local == 0
    assert beside.gaps.percentile(99) == pytest.approx(alone.gaps.percentile(99), rel=0.1)


def test_where_prefill_falls_behind_the_decode_worker_helps_within_the_target() -> None:
    helped, apart = beside_streams(0.1), beside_streams(0.1, local_prefill_queue=0)
    assert 0 < helped.local < 10
    assert max(helped.ttft) < 0.75 * max(apart.ttft)
    assert apart.gaps.percentile(99) < 0.01 < helped.gaps.percentile(99) < 1.1 * 0.02


def test_kv_moves_while_it_is_computed() -> None:
    network = Network.of(COSTS, layers=10)
    out, into = Port(), Port()
    moving = 1000 * 20_000 * 1000  # ps, at 1 GB/s
    slow = 10 * moving  # compute
    assert network.carry(1000, slow, slow, out, into) == slow + moving // 10
    assert network.carry(1000, slow, slow, out, into) == slow + moving // 10 + moving, "in turn"


def test_a_fit_finds_the_costs_that_made_the_times() -> None:
    decode = [(b, c, 0.01 + 1e-3 * b + 1e-6 * b * c) for b in (1, 8, 32) for c in (128, 2048)]
    assert costs.fit_decode(decode) == pytest.approx((0.01, 1e-3, 1e-6))
    prefill = [(n, 5e-4 * n + 1e-7 * n * (n - 1) / 2) for n in (128, 1024, 4096)]
    assert costs.fit_prefill(prefill) == pytest.approx((5e-4, 1e-7))
    with pytest.raises(ValueError, match="1 measurements do not tell 2 costs"):
        costs.fit_prefill(prefill[:1])


def test_costs_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    costs.write(path, COSTS)
    assert costs.read(path) == COSTS
    path.write_text('{"step": 1}')
    with pytest.raises(CostsError, match="nothing is called step"):
        costs.read(path)
    path.write_text('{"step_s": -1}')
    with pytest.raises(CostsError, match="step_s is -1"):
        costs.read(path)


def test_the_plan_is_the_best_split_or_near_it() -> None:
    base = load(60, 1.0)
    goal = Goal(slo=SLO, share=0.9)
    search = Search(setup(Fleet(colocated=4)), goal, lambda rate: at_rate(base, rate, 4.0))
    chosen = search.best(4)
    every = [search.split(4, prefill) for prefill in range(1, 4)]
    assert chosen.rate >= 0.95 * max(tried.rate for tried in every) > 0
    assert first_to_break(search.run(chosen.fleet, chosen.rate), goal).startswith("nothing")
    assert first_to_break(search.run(chosen.fleet, 10 * chosen.rate), goal).startswith(
        ("prefill", "decoding", "computing", "room")
    )


def test_a_load_that_lasts_comes_again() -> None:
    base = [replace(job, prompt=tuple(range(job.tokens))) for job in load(10, 5.0)]
    made = at_rate(base, 20.0, 4.0)
    assert [job.number for job in made] == list(range(80))
    assert [job.tokens for job in made] == 8 * [job.tokens for job in base]
    assert all(a.at <= b.at for a, b in pairwise(made)) and 3.8 <= made[-1].at <= 4.0
    assert not set(made[10].prompt) & set(made[0].prompt)


def test_the_command_says_what_it_cannot_simulate(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate_main(["--prefill", "1", "--rates", "1"]) == 2
    assert "it takes --prefill and --decode" in capsys.readouterr().err
    assert simulate_main(["--colocated", "1", "--requests", "5"]) == 2
    assert "--rates" in capsys.readouterr().err
