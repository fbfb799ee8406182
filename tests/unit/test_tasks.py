"""What a group of tasks raises, and what is left of it."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from baton.errors import PrefillLost
from baton.tasks import group


class Held:
    """Something that a failing task has in its hands."""


@pytest.mark.usefixtures("uncollected")
async def test_a_failure_comes_bare_and_what_it_held_goes_with_it() -> None:
    held: list[weakref.ref[Held]] = []

    async def fail() -> None:
        mine = Held()
        held.append(weakref.ref(mine))
        await asyncio.sleep(0)
        raise PrefillLost("gone")

    async def call() -> None:
        async with group() as tasks:
            tasks.create_task(fail())
            mine = Held()
            held.append(weakref.ref(mine))
            await asyncio.Event().wait()

    with pytest.raises(PrefillLost, match="gone") as failure:
        await call()
    assert failure.value.__suppress_context__
    del failure
    await asyncio.sleep(0)
    assert [each() for each in held] == [None, None]
