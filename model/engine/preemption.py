"""Who gives up its blocks when a decoding sequence needs one and there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from model.engine.memory import Memory
from model.engine.sequence import Phase, Sequence


def make_room(
    memory: Memory,
    decoding: Iterable[Sequence],
    live: Iterable[Sequence],
    preempt: Callable[[Sequence], None],
) -> None:
    """Give a block to every ``decoding`` sequence that has none for its next token, oldest first;
    where there is none left, ``preempt`` one of the ``live`` ones, which ends with that."""
    memory.sitting_out = 0
    short = [s for s in decoding if s.computed >= s.room]
    if memory.grow(short):
        return
    for seq in sorted(short, key=lambda s: s.rank):
        while seq.phase is Phase.DECODING and not memory.grow([seq]):
            last = victim(live, memory.held, memory.quarantined)
            if last is None:
                memory.sitting_out += 1
                break
            preempt(last)


def victim(live: Iterable[Sequence], held: Collection[int], quarantined: int) -> Sequence | None:
    """The last by rank; never the first, which can therefore always go on in the end, so that
    preemption never goes round in circles.

    A sequence whose transfer has begun (its id is in ``held``, or it is kept for one) gives way
    only if no other is left and no quarantined block is about to come back: None says that
    waiting is the better choice. Its own blocks come back only when its transfer has ended.
    """
    ranked = sorted(live, key=lambda s: s.rank)
    first = next((s for s in ranked if not s.request.keep), None)
    others = [s for s in reversed(ranked) if s is not first]
    for seq in others:
        if seq.seq_id not in held and not seq.request.keep:
            return seq
    return others[0] if others and not quarantined else None
