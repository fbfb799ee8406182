"""What is asked of a simulated fleet, and when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from bench import trace
from bench.load.workload import arrivals
from bench.trace import Line, Scale

#: Token ids of prompts with contents are below this.
_VOCABULARY = Scale().vocabulary


@dataclass(frozen=True, slots=True)
class Job:
    """A request. Raises ValueError for one without a prompt or an answer."""

    number: int  #: from 0, in order of arrival
    at: float  #: seconds
    tokens: int  #: of the prompt
    output: int  #: tokens of the answer, exactly
    prompt: tuple[int, ...] = ()  #: empty where it shares nothing with any other

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.output < 1:
            raise ValueError(f"request {self.number}: {self.tokens} tokens in, {self.output} out")

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids, different from any other job's from the first one on unless it shares."""
        return self.prompt or (self.number,) * self.tokens


def of_trace(lines: Sequence[Line], scale: Scale) -> list[Job]:
    """A trace as it came, lengths and time scaled. Prompts of traces that say which blocks are
    shared have contents. Raises TraceError."""
    if any(line.hash_ids for line in lines):
        asked = trace.requests(lines, scale)
        return [
            Job(number, one.at, len(one.prompt), one.max_tokens, one.prompt)
            for number, one in enumerate(asked)
        ]
    return [
        Job(
            number,
            line.at / scale.speed,
            _scaled(line.input_length, scale.length, scale.prompt_cap),
            _scaled(line.output_length, scale.output, scale.output_cap),
        )
        for number, line in enumerate(lines)
    ]


def _scaled(length: int, factor: float, cap: int | None) -> int:
    scaled = max(1, round(length * factor))
    return scaled if cap is None else min(scaled, cap)


def read(path: Path, count: int | None, scale: Scale) -> list[Job]:
    """Raises TraceError, OSError."""
    return of_trace(trace.read(path, count), scale)


def at_rate(jobs: Sequence[Job], rate: float, seconds: float = 0.0) -> list[Job]:
    """The same in the same rhythm, but so many per second on average, and again and again until so
    many seconds are over: few requests that come at once are no lasting load."""
    count = max(len(jobs), math.ceil(rate * seconds))
    span = jobs[-1].at - jobs[0].at
    factor = (len(jobs) - 1) / rate / span if span else 0.0
    turns = (number // len(jobs) * len(jobs) / rate for number in range(count))
    times = (turn + (job.at - jobs[0].at) * factor for turn, job in zip(turns, cycle(jobs)))
    return [*_again(jobs, times)]


def drawn(
    jobs: Sequence[Job], count: int, rate: float, burstiness: float, seed: int
) -> Iterator[Job]:
    """``count`` jobs of these lengths, in turn, that come at random: see
    ``bench.load.workload.arrivals``."""
    return _again(jobs, arrivals(count, rate, burstiness, seed))


def _again(jobs: Sequence[Job], times: Iterable[float]) -> Iterator[Job]:
    """In turn, at these times; those of another turn share with one another, not with those of the
    first."""
    for number, at in enumerate(times):
        turn, index = divmod(number, len(jobs))
        job = jobs[index]
        prompt = job.prompt
        if turn and prompt:
            prompt = tuple(token + turn * _VOCABULARY for token in prompt)
        yield Job(number, at, job.tokens, job.output, prompt)


def share(jobs: Iterable[Job]) -> bool:
    """Whether some prompts may begin alike."""
    return any(job.prompt for job in jobs)
