"""When Python looks for garbage that refers to itself.

Its own rule looks through the whole heap each time that has grown by a quarter. With thousands of
streams that takes a second, ten times while they begin, and in each no heartbeat is sent. Here it
is done when memory has grown by half, and by so much that it is worth it; and not while it grows
on: a process that thousands come to at once has no second to spare.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from baton import tasks
from baton.metrics.usage import resident

#: Objects that came and did not go before the young are looked through, and how often that is done
#: before those that outlived it are.
_YOUNG, _MIDDLE = 10_000, 20
_NEVER = 2**31 - 1
#: Bytes that memory grows by, at least, before all are.
WORTH = 64 * 2**20
#: Seconds between looks at how much there is, and looks for which it may wait until all have come.
_LOOK, _PATIENCE = 1.0, 30
#: From one look to the next memory has not grown by more, if it does not grow on.
_CALM = 1.02


def due(now: int, last: int) -> bool:
    """Whether a process of ``now`` bytes, ``last`` after it was last looked through, should be."""
    return now - last > max(WORTH, last // 2)


@asynccontextmanager
async def seldom() -> AsyncIterator[None]:
    """As long as the body runs."""
    async with tasks.group() as beside:
        collecting = beside.create_task(collect(), name="garbage")
        yield
        collecting.cancel()


async def collect(resident: Callable[[], int] = resident) -> None:
    """Until cancelled. Where the system does not tell of memory, Python's rule stays."""
    before, last = gc.get_threshold(), resident()
    latest, waited = last, 0
    if not last:
        return
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    try:
        while True:
            await asyncio.sleep(_LOOK)
            now = resident()
            waited = waited + 1 if due(now, last) else 0
            if waited and (now <= _CALM * latest or waited > _PATIENCE):
                gc.collect()
                now = last = resident()
            latest, last = now, min(last, now)
    finally:
        gc.set_threshold(*before)
