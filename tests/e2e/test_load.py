"""Two hundred requests of any length, some cancelled, through a cache of ten blocks."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from tests.e2e import client
from tests.e2e.cluster import Cluster, cluster
from tests.e2e.mocked import Job, compatibility, job

REQUESTS = 200
#: Ten blocks of sixteen tokens; prompt and answer together never exceed them.
BLOCKS, POOL = 10, 160
PATIENT = [
    flag
    for phase in ("queue", "prefill", "transfer", "first-token", "inter-token")
    for flag in (f"--{phase}-timeout", "150")
]


def jobs(rng: random.Random) -> list[Job]:
    lengths = [rng.choice([1, 15, 16, 17, rng.randrange(1, 120)]) for _ in range(REQUESTS)]
    return [job(rng, length, rng.randrange(1, min(40, POOL - length))) for length in lengths]


async def follow(http: httpx.AsyncClient, job: Job, leave_after: int | None) -> client.Answer:
    """To the end, or until so many events have come and the client goes away."""
    answer = client.Answer()
    events = 0
    async for current in client.stream(http, job.body):
        answer, events = current, events + 1
        if leave_after is not None and events > leave_after:
            break
    return answer


async def storm(running: Cluster, work: list[Job], rng: random.Random) -> list[client.Answer]:
    """All at once, in four waves; a third of the clients leave, some before their first token.
    Answers of those who stayed, in order; of those who left, None in ``finish``."""
    leaving = {i: rng.randrange(0, 8) for i in range(len(work)) if rng.random() < 0.3}

    async def run(http: httpx.AsyncClient, index: int, job: Job) -> client.Answer:
        await asyncio.sleep(0.5 * (index % 4))
        if index in leaving and leaving[index] == 0:
            late = rng.random()
            try:
                async with asyncio.timeout(late):
                    return await follow(http, job, 1)
            except TimeoutError:
                return client.Answer()
        return await follow(http, job, leaving.get(index))

    async with client.connect(running.url) as http:
        answers = await asyncio.gather(*(run(http, i, job) for i, job in enumerate(work)))
    for index, answer in enumerate(answers):
        assert index in leaving or answer.ended, (index, work[index], answer)
    return answers


@pytest.mark.timeout(400)
@pytest.mark.parametrize("roles", [(), ("--colocated", "1")], ids=["apart", "colocated"])
async def test_mock_workers_lose_repeat_and_change_nothing(
    tiny_llama: Path, roles: tuple[str, ...]
) -> None:
    rng = random.Random(1)
    work = jobs(rng)
    flags = ("--mock", "--mock-step-ms", "1", "--num-blocks", str(BLOCKS), *PATIENT, *roles)
    with cluster(tiny_llama, *flags) as running:
        same = compatibility(running)
        for _ in range(5):  # until the pool was short: on a busy machine clients may come late
            answers = await storm(running, work, rng)
            for index, (task, answer) in enumerate(zip(work, answers, strict=True)):
                wanted = task.expected(same)
                assert answer.error is None, (index, answer)
                assert answer.token_ids == wanted[: len(answer.token_ids)], (index, task)
                if answer.done:
                    assert answer.token_ids == wanted, (index, task)
            if running.migrations().get("preempted", 0):
                return  # the books are checked by cluster() as the block ends
        pytest.fail("the pool was never short")


@pytest.mark.timeout(400)
async def test_torch_workers_end_every_stream(tiny_llama: Path) -> None:
    rng = random.Random(2)
    with cluster(tiny_llama, "--num-blocks", str(BLOCKS), *PATIENT) as running:
        answers = await storm(running, jobs(rng), rng)
    assert [answer.error for answer in answers if answer.error] == []
