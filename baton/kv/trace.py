"""The course of a hand-off, piece by piece, as each end saw it: for benchmarks and for looking.

With ``--kv-trace FILE`` each end of each hand-off appends one line of JSON when it is over:

    {"side": "prefill", "request": "r1", "attempt": 0, "start": 0, "end": 2048,
     "events": [["computed", 0, 512, 81.25], ...]}

An event is its name, layer, the position up to which the layer (or the piece) goes, and when, on
the machine's monotonic clock: ends on one machine share it. ``first token`` is of no layer (-1).
Off, it costs nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from baton.generation import AttemptKey

Side = Literal["prefill", "decode"]
Event = Literal["computed", "sent", "received", "written", "first token"]

NO_LAYER = -1


class Trace:
    """One end's events so far."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, int, int, float]] = []

    def add(self, event: Event, layer: int, end: int, at: float | None = None) -> None:
        """``at``: seconds of ``time.monotonic``, now by default."""
        self.events.append((event, layer, end, time.monotonic() if at is None else at))


class Tracer:
    """Makes the traces of one process, and writes them; none without a file."""

    def __init__(self, path: Path | None) -> None:
        """Raises OSError when the file cannot be written."""
        self._path = path
        if path is not None:
            path.open("a").close()

    @contextmanager
    def hand_off(
        self, side: Side, key: AttemptKey, start: int, end: int, *, wanted: bool = False
    ) -> Iterator[Trace | None]:
        """A trace for the body, written when that ends; None when tracing is off, unless it is
        ``wanted`` for itself.

        ``start`` and ``end``: which positions are handed over.
        """
        if self._path is None:
            yield Trace() if wanted else None
            return
        trace = Trace()
        try:
            yield trace
        finally:
            line = {
                "side": side,
                "request": key.request_id,
                "attempt": key.attempt,
                "start": start,
                "end": end,
                "events": trace.events,
            }
            with self._path.open("a") as file:  # one write: processes may share the file
                file.write(json.dumps(line) + "\n")
