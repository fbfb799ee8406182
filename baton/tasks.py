"""Structured concurrency in three small pieces: what a call starts never outlives the call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from baton.errors import DeadlineExceeded

T = TypeVar("T")


@asynccontextmanager
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """An ``asyncio.TaskGroup`` that raises its first failure bare, not in an ExceptionGroup.

    Everything else in the group is cancelled by then; what it raised while it was being
    cancelled is a consequence, not news.
    """
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        failures.__traceback__ = None  # it ends in a frame that refers to the group again
    if first is not None:
        try:
            # Not above: as its context the group would keep it, and all frames with what they
            # hold, until the garbage collector comes by.
            raise first from first.__cause__
        finally:
            first = None


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even when the caller is cancelled meanwhile; then be cancelled.

    For bytes on the move: memory may be given up only once nothing writes to it any more.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            if cancelled is None:
                raise
    if cancelled is not None:
        raise cancelled
    return task.result()


@asynccontextmanager
async def within(phase: str, seconds: float) -> AsyncIterator[None]:
    """Raise DeadlineExceeded naming ``phase`` when the body takes longer; inf is no limit."""
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise  # the body's own
        raise DeadlineExceeded(phase, seconds) from None
