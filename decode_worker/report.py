"""How far an attempt is, for a gateway that asked to be told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from baton.generation import AttemptKey, Progress, Timings
from baton.kv.framing import Piece
from baton.kv.transport import Sink

#: Seconds between two reports of an attempt, but for the first and the last.
EVERY = 0.1

#: Takes a report, without waiting.
Say = Callable[[Progress], None]


class Report:
    """Gathers what is learned of one attempt, and says it now and then. ``complete`` is the last
    word, so what was not said before it need not be."""

    def __init__(
        self, key: AttemptKey, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        #: Of its Progress.
        self._known: dict[str, Any] = {
            "key": key,
            "prefill_instance_id": "",
            "computed_tokens": 0,
            "cached_tokens": 0,
            "total_tokens": 0,
        }
        self._layers = 0  # whole there
        self._say = say
        self._clock = clock
        self._said_at = 0.0

    def begin(self, prefill_instance_id: str, cached: int, total: int) -> None:
        """The prompt is to be computed there, all but ``cached`` of ``total`` tokens."""
        self._learn(
            prefill_instance_id=prefill_instance_id,
            computed_tokens=max(cached, self._known["computed_tokens"]),
            cached_tokens=cached,
            total_tokens=total,
        )
        self._tell()

    def receives(self, sink: Sink, transport: str) -> None:
        """KV comes into ``sink`` from now on."""
        shape = sink.shape
        self._learn(kv_total_bytes=shape.total_bytes, layers=shape.layers, transport=transport)

        def written(piece: Piece) -> None:
            self._layers += piece.end == shape.end
            self._known["kv_bytes"] = sink.bytes
            self._known["kv_layers"] = self._layers
            self._tell_sometimes()

        sink.on_written = written

    def computed(self, end: int) -> None:
        """KV of all layers is computed below position ``end``."""
        self._learn(computed_tokens=max(end, self._known["computed_tokens"]))
        self._tell_sometimes()

    def complete(self, timings: Timings) -> None:
        """All KV is here."""
        self._learn(
            computed_tokens=self._known["total_tokens"],
            cached_tokens=max(timings.prefill_cached_tokens, self._known["cached_tokens"]),
            timings=timings,
        )
        self._tell()

    def _learn(self, **known: Any) -> None:
        self._known.update(known)

    def _tell_sometimes(self) -> None:
        if self._clock() - self._said_at >= EVERY:
            self._tell()

    def _tell(self) -> None:
        self._said_at = self._clock()
        self._say(Progress(**self._known))
