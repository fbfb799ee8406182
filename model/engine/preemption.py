"""Who gives up its blocks when a decoding sequence needs one and there is none."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from model.engine.sequence import Sequence


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
