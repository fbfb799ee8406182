"""How long each phase of a request may take, as one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    def tightened(self, asked: Mapping[str, float]) -> Deadlines:
        """With the phases in ``asked`` in place of ours.

        Raises InvalidRequest for one above ours, naming both, or not above 0.
        """
        for name, seconds in asked.items():
            most = getattr(self, name)
            if seconds > most:
                raise InvalidRequest(
                    f"deadline '{name}' is {seconds:g} s, but must be at most {most:g} s",
                    param="deadlines",
                )
        return replace(self, **asked) if asked else self

    def after(self, elapsed: float, *, started: bool) -> Deadlines:
        """What remains ``elapsed`` seconds after arrival, for a worker to keep.

        Phases counted from arrival have so much less, and what is inside of them no more than
        they have. ``started``: the first token has come, and bounds nothing any more.
        """
        least = 0.001
        total = max(self.total - elapsed, least)
        first_token = math.inf if started else min(max(self.first_token - elapsed, least), total)
        return Deadlines(
            queue=min(self.queue, first_token, total),
            prefill=min(self.prefill, first_token, total),
            transfer=min(self.transfer, total),
            first_token=first_token,
            inter_token=min(self.inter_token, total),
            total=total,
        )


UNLIMITED = Deadlines(
    queue=math.inf,
    prefill=math.inf,
    transfer=math.inf,
    first_token=math.inf,
    inter_token=math.inf,
    total=math.inf,
)
