"""What an engine has done since it started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Totals:
    """Counted by the scheduler; tokens, but for the last."""

    cache_hits: int = 0  #: of prompts (and generated ids), found in the prefix cache
    prompt: int = 0  #: of prompts (and generated ids), computed
    generated: int = 0  #: drawn
    preemptions: int = 0  #: sequences ended for want of blocks
