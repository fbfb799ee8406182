"""How much this gateway takes on: prompt tokens that have no first token yet, bounded."""

from __future__ import annotations

from types import TracebackType

from prometheus_client import Gauge

from baton.errors import QueueFull


class Admission:
    """One bounded queue, counted in prompt tokens."""

    def __init__(self, max_tokens: int, queued: Gauge) -> None:
        self._max_tokens = max_tokens
        self._tokens = 0
        self._gauge = queued

    @property
    def tokens(self) -> int:
        """Prompt tokens of requests that wait for their first token."""
        return self._tokens

    def admit(self, tokens: int) -> Ticket:
        """Raises QueueFull, naming both numbers. An empty queue takes any one request."""
        if self._tokens and self._tokens + tokens > self._max_tokens:
            raise QueueFull(
                f"the queue holds {self._tokens} prompt tokens; {tokens} more would exceed its "
                f"limit of {self._max_tokens}"
            )
        self._count(tokens)
        return Ticket(self, tokens)

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        self._gauge.set(self._tokens)


class Ticket:
    """A request's share of the queue; given back once, at its first token or its end."""

    def __init__(self, admission: Admission, tokens: int) -> None:
        self._admission = admission
        self._tokens = tokens

    def give_back(self) -> None:
        """Idempotent."""
        tokens, self._tokens = self._tokens, 0
        self._admission._count(-tokens)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()
