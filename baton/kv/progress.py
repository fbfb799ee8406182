"""How far an offer's layers are computed, and the pieces that this lets its readings send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from baton.kv.framing import Cutter, Piece, Shape


class Progress:
    """Advanced by the Prefill call, without waiting; followed by any number of readings."""

    def __init__(self, shape: Shape) -> None:
        self._computed = [shape.start] * shape.layers
        self._followers: set[asyncio.Event] = set()

    def advance(self, layer: int, end: int) -> None:
        """KV of ``layer`` is computed below position ``end``."""
        self._computed[layer] = max(self._computed[layer], end)
        for news in self._followers:
            news.set()

    async def pieces(self, cutter: Cutter) -> AsyncGenerator[Piece, None]:
        """Every piece of ``cutter`` as soon as it is computed, to the last. Close it when done."""
        news = asyncio.Event()
        self._followers.add(news)
        try:
            while True:
                news.clear()
                for piece in cutter.sendable(self._computed):
                    yield piece
                if cutter.complete:
                    return
                await news.wait()
        finally:
            self._followers.discard(news)
