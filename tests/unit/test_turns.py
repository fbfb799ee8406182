"""What is done in one round of the event loop, when there is much to do."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from gateway.turns import Turns, in_rounds


async def rounds(passed: list[int]) -> list[int]:
    """How many had passed after each round, until none passes any more."""
    seen = [len(passed)]
    while True:
        await asyncio.sleep(0)
        seen.append(len(passed))
        if len(seen) > 3 and seen[-1] == seen[-3]:
            return seen


async def test_a_crowd_passes_a_few_in_a_round_and_in_order() -> None:
    turns, passed = Turns(3), list[int]()

    async def one(number: int) -> None:
        await turns.take()
        passed.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(10)]
    seen = await rounds(passed)
    assert passed == list(range(10))
    assert max(after - before for before, after in pairwise(seen)) == 3
    await asyncio.gather(*tasks)
    async with asyncio.timeout(1):
        await turns.take()


async def test_who_leaves_the_line_takes_nobodys_turn() -> None:
    turns, passed = Turns(1), list[int]()

    async def one(number: int) -> None:
        await turns.take()
        passed.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await asyncio.sleep(0)
    for gone in tasks[1:4]:
        gone.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert passed == [0, 4]


async def test_items_come_a_few_in_a_round() -> None:
    taken = list[int]()

    task = asyncio.create_task(in_rounds(range(10), 4, taken.append))
    seen = await rounds(taken)
    assert taken == list(range(10))
    assert max(after - before for before, after in pairwise(seen)) == 4
    await task
