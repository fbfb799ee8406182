"""A value that changes, and those who follow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Whoever follows sees the latest value, and may miss some between."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        return self._value

    def set(self, value: T) -> None:
        """Nothing happens when it is the same."""
        if value != self._value:
            self._value = value
            self._changed.set()
            self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[T]:
        """The value now, and after every change; never ends."""
        while True:
            value, changed = self._value, self._changed
            yield value
            await changed.wait()
