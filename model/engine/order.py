"""Who goes first, is granted blocks first and is preempted last. Pure.

Order is counted in *tokens computed*, the one clock that runs as fast as the engine does: a
sequence's urgency is how many tokens the engine had computed when it came, less what its priority
is worth, plus, shortest first, a multiple of what it still needs. Smaller goes first. The clock is
the same for all who wait, so waiting needs no updates: it is newcomers who are worth less and less.

Nobody starves. Of two sequences the later one goes first only while fewer tokens were computed
between their arrivals than ``PRIORITY_TOKENS`` for each step of priority that it is above the
other, and, shortest first, ``PATIENCE`` for each token that it is shorter. So once that many were
computed since a sequence came, nobody who comes passes it any more.
"""

from __future__ import annotations

from baton.settings import PrefillOrder

#: Tokens that the engine computes until one step of priority is made up for by waiting.
PRIORITY_TOKENS = 2**16

#: Tokens that the engine computes for newcomers, for each token that a prompt is longer than
#: theirs, until it goes first all the same.
PATIENCE = 4


def urgency(order: PrefillOrder, arrived: int, missing: int) -> int:
    """Of a prompt that came when ``arrived`` tokens were computed (see ``arrival``) and of which
    ``missing`` are left."""
    return arrived + PATIENCE * missing if order == "srpt" else arrived


def arrival(computed: int, priority: int) -> int:
    """When a sequence came, in tokens computed, moved to an earlier time by its priority."""
    return computed - priority * PRIORITY_TOKENS
