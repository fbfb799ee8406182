"""Several streams as one, in the order in which their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Over:
    """A source has ended, well or not."""

    error: Exception | None = None


def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all sources, each source's in its order, until all have ended. One is returned as
    it is.

    A source is at most one item ahead of whoever reads, and runs in a task of its own, unless it
    is the only one. The first failure is raised and ends all. However it ends, every source is
    closed by then, those included that had not begun.
    """
    return sources[0] if len(sources) == 1 else _merged(sources)


async def _merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    queue = asyncio.Queue[T | _Over](maxsize=1)
    tasks = [asyncio.create_task(_pump(source, queue)) for source in sources]
    try:
        open_sources = len(tasks)
        while open_sources:
            item = await queue.get()
            if not isinstance(item, _Over):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                open_sources -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in sources:
            await source.aclose()


async def _pump(source: AsyncGenerator[T, None], queue: asyncio.Queue[T | _Over]) -> None:
    over = _Over()
    async with aclosing(source):
        try:
            async for item in source:
                await queue.put(item)
        except Exception as error:  # noqa: BLE001 - raised again where the items are read
            over = _Over(error)
    await queue.put(over)
