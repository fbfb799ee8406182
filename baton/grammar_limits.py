"""What a grammar that holds an answer may take up: settings know it, ``grammars`` keeps to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarLimits:
    """Of one grammar, and of all that are kept."""

    bytes: int  #: longest text
    states: int  #: of its lexer, up to 2 kB each
    kept: int  #: compiled grammars that are kept for the next request
