"""What a real fleet takes beyond the costs of its workers, from requests to an idle one.

One at a time: until the first token (``request_s``), until the second (``transfer_s``), and for
each step (``step_s``). Engines, which share memory and cores where they share a machine, also: some
answers at once, for what each takes beside the others (``decode_s``), and prompts beside a long
answer, for what steps take beside a neighbour (``prompt_beside``, ``decode_beside``). Mocks take
the time that they are told, whoever is beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

from bench.costs import Costs
from bench.load.raw import Answer
from bench.real import Kind, Running
from bench.simulate.fleet import Fleet, simulate
from bench.simulate.jobs import Job

#: Requests one at a time, and seconds between them.
_ALONE, _APART = 10, 0.7
#: Answers at once, and tokens of each.
_CROWD, _CROWD_TOKENS = 4, 64
#: Prompts beside an answer of so many tokens, and seconds from one to the next.
_PROMPTS, _LONG, _BETWEEN = 12, 500, 0.35


async def calibrated(fleet: Running, kind: Kind, size: Fleet, prompt: int, output: int) -> Kind:
    """With what an idle fleet takes for requests of so many tokens, of which ``output`` are 3 at
    least."""
    kind = replace(kind, costs=await _alone(fleet, kind, size, prompt, output))
    if kind.engines:
        kind = replace(kind, costs=await _at_once(fleet, kind, size, prompt))
        kind = replace(kind, costs=await _beside(fleet, kind, size, prompt))
    return kind


async def _alone(fleet: Running, kind: Kind, size: Fleet, prompt: int, output: int) -> Costs:
    jobs = [Job(n, _APART * n, prompt, output) for n in range(_ALONE)]
    await fleet.run(jobs, seed=1)  # warms up
    real = await fleet.run(jobs, seed=2)
    first, second, step = _waits(kind, size, prompt, output)
    answers, costs = real.level.answers, kind.costs
    per_step = max(0.0, median(map(_step, answers)) - step)
    to_second = median(one.ticks[1] - one.ticks[0] for one in answers) - second - per_step
    to_first = median(real.each["TTFT"].tolist()) - first - per_step
    return replace(
        costs,
        step_s=costs.step_s + per_step,
        transfer_s=costs.transfer_s + max(0.0, to_second),
        request_s=costs.request_s + max(0.0, to_first),
    )


async def _at_once(fleet: Running, kind: Kind, size: Fleet, prompt: int) -> Costs:
    """One answer alone goes on taking what it took."""
    jobs, costs = [Job(n, 0.0, prompt, _CROWD_TOKENS) for n in range(_CROWD)], kind.costs
    real = await fleet.run(jobs, seed=3)
    *_, step = _waits(kind, size, prompt, _CROWD_TOKENS, _CROWD)
    more = max(0.0, fmean(map(_step, real.level.answers)) - step) / (_CROWD - 1)
    return replace(costs, decode_s=costs.decode_s + more, step_s=max(0.0, costs.step_s - more))


async def _beside(fleet: Running, kind: Kind, size: Fleet, prompt: int) -> Costs:
    """A prompt takes longer by a share of its step. While prompts are computed the long answer goes
    on by fewer steps than it does alone, and ends so much later."""
    long, costs = Job(0, 0.0, prompt, _LONG), kind.costs
    prompts = [Job(n, _BETWEEN * (n + 1), prompt, 1) for n in range(1, _PROMPTS + 1)]
    alone = await fleet.run([long], seed=4)
    both = await fleet.run([long, *prompts], seed=5)
    first, *_ = _waits(kind, size, prompt, 3)
    computing = costs.step_s + costs.prefill_token_s * prompt
    longer = max(0.0, median(both.each["TTFT"].tolist()[1:]) - first)
    slower = _step(both.level.answers[0]) - _step(alone.level.answers[0])
    later = max(0.0, slower * (_LONG - 2))
    undisturbed = len(prompts) * (computing + longer) - later
    if undisturbed <= 0:
        raise RuntimeError(
            f"an answer was {later:.3g} s later for {len(prompts)} prompts beside it that "
            f"took {computing + longer:.3g} s each: this machine is too busy to measure it"
        )
    return replace(costs, prompt_beside=longer / computing, decode_beside=later / undisturbed)


def _step(answer: Answer) -> float:
    """Mean seconds from token to token, after the second."""
    return (answer.ticks[-1] - answer.ticks[1]) / (answer.tokens - 2)


def _waits(
    kind: Kind, size: Fleet, prompt: int, output: int, count: int = 1
) -> tuple[float, float, float]:
    """Seconds until the first token, from there to the second, and of a step after that, of
    ``count`` simulated requests at once."""
    setup = kind.setup(size)

    def told(tokens: int) -> tuple[float, float]:
        jobs: Sequence[Job] = [Job(n, 0.0, prompt, tokens) for n in range(count)]
        seen = simulate(setup, jobs)
        return fmean(seen.ttft), fmean(seen.tpot) * (tokens - 1)

    (first, second), (_, whole) = told(2), told(output)
    return first, second, (whole - second) / (output - 2)
