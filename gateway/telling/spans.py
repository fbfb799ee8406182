"""The gateway's part of a request's trace.

    POST /v1/chat/completions            server
      queue                              for each attempt: waiting for a place, and choosing it
      attempt 0                          client: until it ends, by whatever
        (the decode worker's spans, and below them the prefill worker's)
      attempt 1                          a sibling: the request was placed again

The trace is whole at this end whatever becomes of a worker: an attempt's span ends here, with the
reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton.errors import BatonError
from baton.generation import Progress
from baton.tracing import Span, Tracing
from gateway.requests import Kind
from gateway.telling.tale import Ending, Leaving, Placing, Tale

_OPERATIONS: Mapping[Kind, str] = {
    "chat": "chat",
    "completion": "text_completion",
    "response": "chat",
}


@dataclass(slots=True)
class _Attempt:
    span: Span
    choices: int  #: that have not ended
    error: BatonError | None = None


class Spans:
    """Hears of one request."""

    curious = False

    def __init__(self, tale: Tale, tracing: Tracing, path: str) -> None:
        request = tale.request
        self._tale = tale
        self._running: dict[tuple[int, int], _Attempt] = {}
        self._begun = False
        self._span = tracing.begin(
            f"POST {path}",
            request.traceparent,
            at=tale.arrived,
            attributes={
                "http.request.method": "POST",
                "url.path": path,
                "gen_ai.operation.name": _OPERATIONS[request.kind],
                "gen_ai.request.model": request.model,
                "gen_ai.request.max_tokens": request.sampling.max_tokens,
                "gen_ai.request.choice.count": request.n,
                "gen_ai.usage.input_tokens": len(request.prompt_ids),
                "baton.request_id": request.request_id,
            },
        )

    @property
    def recording(self) -> bool:
        """Whether the trace is one of those that are kept."""
        return self._span.recording

    @property
    def traceparent(self) -> str:
        """For whoever is called while there is no attempt."""
        return self._span.traceparent

    def queued(self, at: float) -> None:
        self._span.event("queued", at)

    def placed(self, placing: Placing) -> None:
        decided = {"baton.placement_s": placing.decided}
        self._span.past("queue", placing.since, placing.at, decided)
        prefill = placing.place.prefill
        span = self._span.child(
            f"attempt {placing.attempt}",
            "client",
            at=placing.at,
            attributes={
                "baton.request_id": self._tale.request.request_id,
                "baton.attempt": placing.attempt,
                "baton.choices": list(placing.choices),
                "baton.policy": placing.policy,
                "baton.tokens": placing.tokens,
                "baton.decode.instance_id": placing.place.decode.instance_id,
                "baton.prefill.instance_id": "" if prefill is None else prefill.instance_id,
                "server.address": placing.place.decode.address,
            },
        )
        attempt = _Attempt(span, len(placing.choices))
        for choice in placing.choices:
            self._running[placing.attempt, choice] = attempt
        self._tale.traceparent = span.traceparent

    def progressed(self, attempt: int, progress: Progress, at: float) -> None:
        """Workers have spans of their own."""

    def begun(self, choice: int, attempt: int, at: float) -> None:
        if not self._begun:
            self._begun = True
            self._running[attempt, choice].span.event("first token", at)

    def left(self, leaving: Leaving) -> None:
        attempt = self._running.pop((leaving.attempt, leaving.choice), None)
        if attempt is None:
            return
        attempt.choices -= 1
        if isinstance(leaving.how, BatonError):
            attempt.error = leaving.how
        if not attempt.choices:
            attempt.span.note({"baton.reason": leaving.reason})
            attempt.span.end(attempt.error, leaving.at)

    def ended(self, ending: Ending) -> None:
        self._span.note(
            {
                "http.response.status_code": ending.status,
                "gen_ai.usage.output_tokens": sum(self._tale.tokens.values()),
                "baton.attempts": self._tale.attempts,
                "baton.reason": ending.reason,
            }
        )
        self._span.end(ending.error, ending.at)
