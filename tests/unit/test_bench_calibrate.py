"""What is found out of a fleet, asked of simulated ones of which it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.calibrate import calibrated
from bench.costs import Costs
from bench.load.raw import Answer, Level
from bench.load.statistics import Measured
from bench.real import Kind, Running
from bench.simulate.fleet import Fleet, simulate
from bench.simulate.jobs import Job

PAIR = Fleet(prefill=1, decode=1)
KNOWN = Costs(step_s=0.009, prefill_token_s=5e-4, decode_s=5e-4)


@dataclass(frozen=True, slots=True)
class Simulated(Running):
    """Answers as the truth has it, its tokens evenly."""

    truth: Costs

    async def run(self, jobs: Sequence[Job], seed: int) -> Measured:
        seen = simulate(Kind(costs=self.truth).setup(PAIR), jobs)
        answers = [
            Answer(at, at, ticks := _ticks(at + ttft, tpot, job.output), ticks[-1], job.output)
            for job, (at, ttft, tpot) in zip(
                jobs, sorted(zip(seen.arrived, seen.ttft, seen.tpot, strict=True)), strict=True
            )
        ]
        return Measured(Level("", "rate", 1.0, answers=answers))


def _ticks(first: float, tpot: float, count: int) -> tuple[float, ...]:
    return tuple(first + tpot * n for n in range(count))


async def found(truth: Costs, *, engines: bool) -> Costs:
    fleet = Simulated("", Path(), truth)
    kind = await calibrated(fleet, Kind(costs=KNOWN, engines=engines), PAIR, prompt=128, output=32)
    return kind.costs


async def test_what_engines_take_beyond_their_costs_is_found() -> None:
    truth = replace(KNOWN, step_s=0.011, decode_s=9e-4, request_s=0.02)
    truth = replace(truth, prompt_beside=0.35, decode_beside=0.6)
    costs = await found(truth, engines=True)
    assert costs.step_s == pytest.approx(truth.step_s, rel=0.03)
    assert costs.decode_s == pytest.approx(truth.decode_s, rel=0.1)
    assert costs.request_s == pytest.approx(truth.request_s, rel=0.05)
    assert costs.prompt_beside == pytest.approx(truth.prompt_beside, rel=0.1)
    assert costs.decode_beside == pytest.approx(truth.decode_beside, rel=0.15)


async def test_mocks_take_the_time_that_they_are_told() -> None:
    truth = replace(KNOWN, step_s=0.0095, request_s=0.001)
    costs = await found(replace(truth, decode_beside=0.2), engines=False)
    assert (costs.decode_s, costs.prompt_beside, costs.decode_beside) == (KNOWN.decode_s, 0.0, 0.0)
    assert costs.step_s == pytest.approx(truth.step_s, rel=0.01)
    assert costs.request_s == pytest.approx(truth.request_s, abs=1e-4)
