"""Whether a worker's engine gets on with its work, from the step counter that it reports."""

from __future__ import annotations

from gateway.fleet import Load

#: Reports that must say the same: after a stop of our own, one is not enough to judge by.
_REPORTS = 3


class Progress:
    """An engine that has work must take steps. One that hangs still answers health: only this
    tells."""

    def __init__(self, timeout: float) -> None:
        """``timeout``: seconds that one step may take."""
        self._timeout = timeout
        self._steps: int | None = None
        self._since = 0.0
        self._reports = 0

    def stalled(self, load: Load, now: float) -> bool:
        """Take in a report; True when there was work, and no step, for longer than the timeout."""
        busy = load.queued_tokens > 0 or load.running > 0
        if not busy or load.steps != self._steps:
            self._steps, self._since, self._reports = load.steps, now, 0
            return False
        self._reports += 1
        return self._reports >= _REPORTS and now - self._since > self._timeout
