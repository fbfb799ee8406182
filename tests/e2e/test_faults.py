"""Workers die and freeze in mid-stream. With another there, streams go on, to the very token;
without, they end with a clear error in time. Never a hang, never a token twice."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.e2e import client
from tests.e2e.cluster import Cluster, Process, cluster, report, until
from tests.e2e.mocked import Job, compatibility, job

FROZEN_SECONDS = 6.0
#: Prompts compute for about two seconds, answers take about three.
SLOW = ("--mock", "--mock-prefill-us", "5000", "--mock-step-ms", "20", "--chunk-tokens", "32")
GIVE_UP = 4.0


def jobs(count: int, length: int = 20, max_tokens: int = 120) -> list[Job]:
    rng = random.Random(count * length)
    return [job(rng, length, max_tokens) for _ in range(count)]


@asynccontextmanager
async def streams(
    running: Cluster, work: Sequence[Job]
) -> AsyncIterator[tuple[list[client.Answer], asyncio.Task[list[client.Answer]]]]:
    """Answers as they grow, and the task that ends with the last of them."""
    growing = [client.Answer() for _ in work]

    async def follow(http: httpx.AsyncClient, index: int, job: Job) -> client.Answer:
        async for answer in client.stream(http, job.body):
            growing[index] = answer
        return growing[index]

    async def all_of_them() -> list[client.Answer]:
        async with client.connect(running.url) as http:
            return await asyncio.gather(*(follow(http, i, job) for i, job in enumerate(work)))

    task = asyncio.create_task(all_of_them())
    try:
        yield growing, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def some_tokens(growing: list[client.Answer], each: int, count: int | None = None) -> None:
    """Wait until the first ``count`` answers (all, if None) have so many tokens each."""
    deadline = time.monotonic() + 60.0
    while min(len(answer.token_ids) for answer in growing[:count]) < each:
        assert time.monotonic() < deadline, growing
        assert not any(answer.error for answer in growing), growing
        await asyncio.sleep(0.01)


def computing(running: Cluster) -> Process | None:
    """The prefill worker that has most to do, if it has anything."""
    busiest = running.busiest("p")
    load = report(busiest.address, idle=False).load
    return busiest if load.running + load.waiting else None


def assert_exact(running: Cluster, work: Sequence[Job], answers: Sequence[client.Answer]) -> None:
    same = compatibility(running)
    for task, answer in zip(work, answers, strict=True):
        assert answer.done and answer.error is None, answer
        assert answer.token_ids == task.expected(same)


async def test_killed_decode_worker_with_another_there(tiny_llama: Path) -> None:
    work = jobs(6)
    with cluster(tiny_llama, *SLOW, "--decode", "2", "--no-restart") as running:
        running.until_healthy("p0", "d0", "d1")
        async with streams(running, work) as (growing, task):
            await some_tokens(growing, 5)
            running.busiest("d").send(signal.SIGKILL)
            answers = await asyncio.wait_for(task, 60.0)
        assert_exact(running, work, answers)


async def test_killed_prefill_worker_with_another_there_and_then_none(tiny_llama: Path) -> None:
    """The second time the decode worker computes the prompts itself."""
    with cluster(tiny_llama, *SLOW, "--prefill", "2", "--no-restart") as running:
        running.until_healthy("p0", "p1", "d0")
        for length in (200, 201):
            work = jobs(4, length=length, max_tokens=30)
            async with streams(running, work) as (_, task):
                victim = await asyncio.to_thread(until, lambda: computing(running), 60.0, "prefill")
                victim.send(signal.SIGKILL)
                answers = await asyncio.wait_for(task, 90.0)
            assert_exact(running, work, answers)
        assert not any(p.alive for p in running.workers if p.name.startswith("p"))
        assert running.migrations().keys() & {"prefill_lost", "handoff_failed"}


async def test_killed_only_decode_worker_is_an_error_in_time(tiny_llama: Path) -> None:
    work = jobs(4)
    flags = ("--no-restart", "--retry-budget", str(GIVE_UP))
    with cluster(tiny_llama, *SLOW, *flags) as running:
        async with streams(running, work) as (growing, task):
            await some_tokens(growing, 5)
            running.processes["d0"].send(signal.SIGKILL)
            killed = time.monotonic()
            answers = await asyncio.wait_for(task, 60.0)
        assert time.monotonic() - killed < GIVE_UP + 16.0
        for answer in answers:
            assert answer.error is not None and not answer.done, answer
            assert answer.error["code"] in {"decode_lost", "decode_silent", "no_worker"}
        async with client.connect(running.url) as http:
            assert (await http.get("/ready")).status_code == 503


async def test_killed_only_decode_worker_comes_back(tiny_llama: Path) -> None:
    """``baton up`` starts it again within the gateway's patience: nothing but a delay."""
    work = jobs(4)
    with cluster(tiny_llama, *SLOW) as running:
        async with streams(running, work) as (growing, task):
            await some_tokens(growing, 5)
            running.processes["d0"].send(signal.SIGKILL)
            answers = await asyncio.wait_for(task, 90.0)
        assert_exact(running, work, answers)


async def test_frozen_workers_with_others_there(tiny_llama: Path) -> None:
    """One of each kind stops for twice as long as it is waited for, and wakes: nothing is lost,
    nothing comes twice."""
    work = [*jobs(4), *jobs(4, length=200, max_tokens=30)]
    with cluster(tiny_llama, *SLOW, "--prefill", "2", "--decode", "2") as running:
        running.until_healthy("p0", "p1", "d0", "d1")
        async with streams(running, work) as (growing, task):
            await some_tokens(growing, 5, count=4)
            frozen = [running.busiest("d"), running.busiest("p")]
            for process in frozen:
                process.send(signal.SIGSTOP)
            answers_and_wake = asyncio.gather(task, _wake(frozen))
            answers, _ = await asyncio.wait_for(answers_and_wake, 90.0)
        assert_exact(running, work, answers)
        # Once awake, they are healthy members again and their books balance.
        running.until_healthy(*(process.name for process in frozen))
        async with client.connect(running.url) as http:
            again = await asyncio.gather(*(client.whole(http, task.body) for task in work))
        assert_exact(running, work, again)


async def test_frozen_only_decode_worker(tiny_llama: Path) -> None:
    """It wakes within the gateway's patience, and streams go on where they were."""
    work = jobs(4)
    with cluster(tiny_llama, *SLOW) as running:
        async with streams(running, work) as (growing, task):
            await some_tokens(growing, 5)
            frozen = [running.processes["d0"]]
            frozen[0].send(signal.SIGSTOP)
            answers, _ = await asyncio.wait_for(asyncio.gather(task, _wake(frozen)), 90.0)
        assert_exact(running, work, answers)


async def _wake(frozen: Sequence[Process]) -> None:
    await asyncio.sleep(FROZEN_SECONDS)
    for process in frozen:
        process.send(signal.SIGCONT)
