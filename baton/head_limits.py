"""How much a connection may take up before it has asked for anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Of the head of an HTTP request: its request line and header fields."""

    seconds: float  #: from the connection, or from the head's first byte, to its end
    bytes: int
    fields: int
