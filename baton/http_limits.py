"""How much HTTP connections and bodies may take up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Of a port's connections, and of the head of an HTTP request: request line and header."""

    connections: int  #: open at once
    seconds: float  #: from the connection, or from the head's first byte, to its end
    bytes: int
    fields: int
    unread: float  #: seconds for which a client may take nothing of what it is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """How much bodies may take up."""

    bytes: int  #: of one
    seconds: float  #: from the head's end to its own
    bytes_of_all: int  #: of requests under way
