"""The waiting room, an attempt's fence, and patience."""

from __future__ import annotations

import asyncio
import math

import pytest

from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import DeadlineExceeded, DecodeLost
from baton.generation import AttemptKey, FinishReason, Timings
from gateway.attempt import Attempt, Finished
from gateway.patience import Patience
from gateway.stall import Stall
from gateway.waiting import Turn, WaitingRoom
from tests.fakes import eventually


def waiting_room() -> WaitingRoom:
    return WaitingRoom(asyncio.get_running_loop().time)


async def test_the_oldest_looks_first_and_nobody_overtakes() -> None:
    room, free, served = waiting_room(), 0, []

    def find() -> bool | None:
        nonlocal free
        if free == 0:
            return None
        free -= 1
        return True

    async def wait(arrival: int) -> None:
        await room.take_turn(Turn(0, arrival), 1, find)
        served.append(arrival)

    tasks = []
    for arrival in (5, 3, 9, 1):
        tasks.append(asyncio.create_task(wait(arrival)))
        await asyncio.sleep(0)
    free = 2
    room.changed()
    await asyncio.sleep(0.01)
    assert served == [1, 3]
    tasks[0].cancel()
    free = 1
    await asyncio.sleep(0.01)
    assert served == [1, 3, 9]
    assert len(room) == 0


async def test_what_find_raises_lets_the_next_one_look() -> None:
    room = waiting_room()
    full = True

    def find() -> int | None:
        return None if full else 1

    def broken() -> int | None:
        raise ValueError("no")

    waiting = asyncio.create_task(room.take_turn(Turn(0, 2), 1, find))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="no"):
        await room.take_turn(Turn(0, 1), 1, broken)
    full = False
    assert await waiting == 1


def attempt(next_index: int = 0, limit: int = 100) -> Attempt:
    return Attempt(AttemptKey("r", 0), next_index, limit, lambda: None)


async def test_an_attempt_accepts_only_the_next_tokens() -> None:
    fenced = attempt(next_index=2, limit=5)
    assert not fenced.put(0, [1])
    assert not fenced.put(3, [1])
    assert fenced.put(2, [7, 8])
    assert not fenced.put(2, [7])
    assert not fenced.put(4, [1, 2]), "past the limit"
    assert fenced.put(4, [9])
    assert await fenced.take() == [7, 8, 9]


async def test_tokens_are_taken_before_the_end() -> None:
    lost = attempt()
    lost.put(0, [1, 2])
    lost.end(DecodeLost("gone"))
    lost.end(Finished(FinishReason.STOP, Timings()))
    assert not lost.put(2, [3])
    assert await lost.take() == [1, 2]
    assert lost.finished is None
    with pytest.raises(DecodeLost, match="gone"):
        await lost.take()

    done = attempt()
    done.put(0, [1])
    done.end(Finished(FinishReason.LENGTH, Timings()))
    assert done.finished is None, "a token is still to be taken"
    assert await done.take() == [1]
    assert done.finished is not None
    assert await done.take() == []


def limits(**seconds: float) -> Deadlines:
    return Deadlines(
        **{name: seconds.get(name, math.inf) for name in Deadlines.__dataclass_fields__}
    )


async def test_patience_names_the_phase() -> None:
    patience = Patience(limits(first_token=0.02, inter_token=0.05))
    with pytest.raises(DeadlineExceeded, match=r"'first_token': 0\.02 s"):
        async with patience:
            await asyncio.sleep(5)
    patience.progress()
    with pytest.raises(DeadlineExceeded, match="'inter_token'"):
        async with patience:
            await asyncio.sleep(5)
    patience = Patience(limits(inter_token=9, total=0.02))
    patience.progress()
    with pytest.raises(DeadlineExceeded, match="'total'"):
        async with patience:
            await asyncio.sleep(5)


async def test_patience_watches_many_waits_with_one_timer() -> None:
    patience, late = Patience(limits(first_token=9, inter_token=0.5)), list[str]()
    waiting = False
    patience.progress()
    with patience.watching(lambda: waiting, lambda error: late.append(error.phase)):
        await asyncio.sleep(0.6)
        assert not late, "a token is there that nobody took"
        waiting = True
        for _ in range(60):  # more than a deadline, all in all
            await asyncio.sleep(0.01)
            patience.progress()
        assert not late
        await eventually(lambda: late == ["inter_token"])


async def test_a_total_deadline_passes_whoever_waits() -> None:
    patience, late = Patience(limits(inter_token=9, total=0.02)), list[str]()
    patience.progress()
    with patience.watching(lambda: False, lambda error: late.append(error.phase)):
        await eventually(lambda: late == ["total"])


async def test_a_stall_is_what_takes_too_long_by_itself() -> None:
    stall, late = Stall(0.5), asyncio.Event()
    with stall.watching(late.set):
        for _ in range(20):  # longer than allowed, all in all
            with stall:
                await asyncio.sleep(0.03)
        assert not late.is_set()
        with stall:
            await asyncio.wait_for(late.wait(), 60)


async def test_patience_leaves_other_timeouts_alone() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with Patience(UNLIMITED):
            raise TimeoutError("mine")
