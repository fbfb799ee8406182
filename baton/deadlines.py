"""How long each phase of a request may take, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from baton.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds allowed per phase; ``math.inf`` is no limit.

    Every phase must be given: a forgotten one would silently be unlimited (the idea is httpx's
    ``Timeout``). On the wire it is remaining milliseconds, never a wall clock.
    """

    queue: float  #: waiting in the gateway for a place
    prefill: float  #: computing the prompt
    transfer: float  #: from the first token to the last KV block
    first_token: float  #: from arrival to the first token
    inter_token: float  #: between two tokens
    total: float  #: from arrival to the end

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InvalidRequest(
                    f"deadline '{field.name}' is {value} s, but must be above 0", param=field.name
                )

    def after(self, elapsed: float) -> Deadlines:
        """What remains of the phases counted from arrival, ``elapsed`` seconds later."""
        least = 0.001
        return replace(
            self,
            first_token=max(self.first_token - elapsed, least),
            total=max(self.total - elapsed, least),
        )


UNLIMITED = Deadlines(
    queue=math.inf,
    prefill=math.inf,
    transfer=math.inf,
    first_token=math.inf,
    inter_token=math.inf,
    total=math.inf,
)
