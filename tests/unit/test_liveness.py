"""Heartbeats on a clock of the test's own."""

from __future__ import annotations

import asyncio
import math

import pytest

from baton.errors import ClientGone, DeadlineExceeded
from baton.liveness import Beat, Liveness, PeerSilent
from baton.tasks import finish, group, within


class Clock:
    """Sleeps that last until the test ticks."""

    def __init__(self) -> None:
        self._tick = asyncio.Event()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._tick.wait()
        self._tick.clear()

    async def tick(self) -> None:
        self._tick.set()
        for _ in range(3):
            await asyncio.sleep(0)


async def test_beats_until_the_peer_has_missed_so_many() -> None:
    clock, sent = Clock(), list[int]()
    liveness = Liveness(Beat(2.0, 3), sleep=clock.sleep)
    running = asyncio.create_task(liveness.run(sent.append))
    await asyncio.sleep(0)
    assert sent == [1]
    for _ in range(2):
        await clock.tick()
    liveness.heard()
    for _ in range(2):
        await clock.tick()
    assert not running.done() and sent == [1, 2, 3, 4, 5]
    await clock.tick()
    with pytest.raises(PeerSilent, match="6 s"):
        await running
    assert set(clock.slept) == {2.0}


async def test_a_process_that_was_stopped_itself_does_not_blame_its_peers() -> None:
    """However long a sleep has lasted, it is one missed beat."""
    clock = Clock()
    liveness = Liveness(Beat(1.0, 2), sleep=clock.sleep)
    running = asyncio.create_task(liveness.run(lambda _: None))
    await asyncio.sleep(0)
    await clock.tick()
    assert not running.done() and liveness.silent == 1
    liveness.heard()
    await clock.tick()
    assert not running.done()
    running.cancel()
    await asyncio.wait((running,))


async def test_a_loop_that_is_late_itself_is_slower_to_judge() -> None:
    """What the peer has said may lie unread; but the dead are let go of in the end."""
    clock, now, ticks = Clock(), 0.0, 0
    liveness = Liveness(Beat(1.0, 3), sleep=clock.sleep, clock=lambda: now)
    running = asyncio.create_task(liveness.run(lambda _: None))
    await asyncio.sleep(0)
    while not running.done():
        now += 2.0
        ticks += 1
        await clock.tick()
    assert ticks == 6
    with pytest.raises(PeerSilent):
        await running


async def test_whether_a_peer_that_heard_nothing_is_to_blame() -> None:
    clock, now = Clock(), 0.0
    liveness = Liveness(Beat(1.0, 3), sleep=clock.sleep, clock=lambda: now)
    running = asyncio.create_task(liveness.run(lambda _: liveness.heard()))
    await asyncio.sleep(0)
    for _ in range(2):
        assert not liveness.steady, "too young to tell"
        now += 1.0
        await clock.tick()
    assert liveness.steady
    now += 3.0  # stopped, between two beats
    assert not liveness.steady
    await clock.tick()
    assert not liveness.steady
    for _ in range(2):
        now += 1.0
        await clock.tick()
    assert liveness.steady
    running.cancel()
    await asyncio.wait((running,))


async def test_a_group_raises_its_first_failure_bare() -> None:
    async def fail() -> None:
        raise ClientGone("gone")

    cancelled = asyncio.Event()
    with pytest.raises(ClientGone):
        async with group() as tasks:
            tasks.create_task(fail())
            try:
                await asyncio.sleep(10)
            finally:
                cancelled.set()
    assert cancelled.is_set()


async def test_finish_outlasts_cancellation() -> None:
    gate, done = asyncio.Event(), list[str]()

    async def work() -> str:
        await gate.wait()
        done.append("worked")
        return "result"

    task = asyncio.create_task(finish(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["worked"]
    assert await finish(work()) == "result"


async def test_finish_raises_what_the_work_raised() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(fail())


async def test_within_names_its_phase_and_leaves_other_timeouts_alone() -> None:
    with pytest.raises(DeadlineExceeded, match=r"'transfer': 0\.01 s"):
        async with within("transfer", 0.01):
            await asyncio.sleep(5)
    with pytest.raises(TimeoutError):
        async with within("transfer", math.inf):
            raise TimeoutError
