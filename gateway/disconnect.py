"""Noticing that a client has gone while nothing is being sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.types import Receive

from baton.errors import ClientGone

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects.

    To be called after the body was read: from then on ``receive`` only tells of the end. Raises
    ClientGone; nothing of it will be seen.
    """
    limit = asyncio.timeout(None)

    def end(watching: asyncio.Task[None]) -> None:
        if not watching.cancelled():
            with suppress(RuntimeError):  # the work is done
                limit.reschedule(0.0)

    watching = asyncio.create_task(disconnected(receive), name="client")
    watching.add_done_callback(end)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise  # the work's own
        raise ClientGone("the client closed the connection") from None
    finally:
        watching.cancel()


async def disconnected(receive: Receive) -> None:
    """Returns once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
