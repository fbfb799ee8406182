"""What one Prefill call has yet to say: in order, and small however slowly it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from baton.v1 import common_pb2, prefill_pb2

Write = Callable[[prefill_pb2.PrefillEvent], Awaitable[None]]


class Outbox:
    """Filled without waiting, drained by one writer.

    Progress is kept as one position per layer: to a reader that lags only the newest is told,
    so what waits here does not grow with the prompt.
    """

    def __init__(self) -> None:
        self._events: list[prefill_pb2.PrefillEvent] = []
        self._layers: dict[int, int] = {}  # layer -> end, not told yet
        self._news = asyncio.Event()
        self._done = False

    def put(self, event: prefill_pb2.PrefillEvent) -> None:
        """Say ``event`` after what was put before it."""
        self._events.append(event)
        self._news.set()

    def layer_ready(self, layer: int, end: int) -> None:
        """KV of ``layer`` is computed below position ``end``."""
        self._layers[layer] = max(end, self._layers.get(layer, 0))
        self._news.set()

    def beat(self, sequence: int) -> None:
        """A sign of life."""
        self.put(prefill_pb2.PrefillEvent(heartbeat=common_pb2.Heartbeat(sequence=sequence)))

    def done(self, timings: common_pb2.Timings) -> None:
        """The last word, after which ``drain`` ends."""
        self.put(prefill_pb2.PrefillEvent(done=prefill_pb2.PrefillDone(timings=timings)))
        self._done = True

    async def drain(self, write: Write) -> None:
        """Write everything, until ``done`` is written."""
        while True:
            self._news.clear()
            events, self._events = self._events, []
            layers, self._layers = self._layers, {}
            for event in events:
                await write(event)
            for layer, end in layers.items():
                ready = prefill_pb2.LayerReady(layer=layer, end_token=end)
                await write(prefill_pb2.PrefillEvent(layer_ready=ready))
            if self._done and not self._news.is_set():
                return
            await self._news.wait()
