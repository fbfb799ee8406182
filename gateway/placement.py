"""Which workers take a request: small scores over the fleet's state, lowest first.

Everything here is plain computation over ``Worker`` values: no clock, no I/O, randomness passed
in. A new policy is a new ``Score``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from baton.errors import ContextLengthExceeded, IncompatiblePeer, NoWorker
from baton.identity import Family, Role
from gateway.fleet import Health, Worker
from gateway.roster import Pool, Roster

#: Workers with room that are compared for one side of a request. Up to so many the choice is the
#: best of all. Beyond, the best of so many, from a random one on: next to no worse (two would
#: nearly do: Mitzenmacher, "The power of two choices in randomized load balancing"), bounded in
#: time, and several gateways with the same reports do not all run to one worker.
WIDTH = 16

#: The lowest score takes the request; equal ones are drawn from.
Score = Callable[[Worker], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request asks of the workers that take it."""

    model: str  #: name under which it is served
    tokens: int  #: prompt and generated so far: the KV to be there before the next token
    longest: int  #: tokens of prompt and answer at most
    choices: int = 1  #: that go on from those tokens, each in blocks of its own
    #: Of the attempts before: a replay stays inside the class. None for a first attempt.
    family: Family | None = None
    #: Instances that failed this request since its last token.
    avoid: Collection[str] = ()
    #: Instance that holds this request's blocks in its cache, empty for none.
    prefer: str = ""
    #: Without a prefill worker the decode worker may compute the prompt itself.
    local_prefill: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt runs. ``prefill`` is None when the decode worker computes the prompt."""

    decode: Worker
    prefill: Worker | None


def most_room(worker: Worker) -> tuple[float, ...]:
    """Fewest prompt tokens to compute there, then most free KV, then fewest sequences."""
    load = worker.report.load
    return (worker.queued_tokens, -worker.room_blocks, load.running + load.waiting)


def least_queued(worker: Worker) -> tuple[float, ...]:
    """Fewest prompt tokens waiting for compute."""
    return (worker.queued_tokens,)


@dataclass(frozen=True, slots=True)
class Found:
    """Workers for one side of a request."""

    able: bool  #: some could take it, whether they have room now or not
    roomy: Sequence[Worker]  #: some of those that have room now


@dataclass(frozen=True, slots=True)
class Offer:
    """Decode workers with room, and the prefill workers that go with any of them."""

    decode: Sequence[Worker]
    prefill: Sequence[Worker]  #: empty: the decode worker computes the prompt itself


class Placement:
    """Chooses by one score per role, among all that have room or, in a large fleet, ``WIDTH``."""

    def __init__(
        self,
        rng: random.Random,
        *,
        decode: Score = most_room,
        prefill: Score = least_queued,
    ) -> None:
        self._rng = rng
        self._decode = decode
        self._prefill = prefill

    def choose(self, roster: Roster, need: Need) -> Place | None:
        """A decode worker, and a prefill worker of its class unless it prefills itself.

        None when every worker that could take the request is full at the moment. Raises
        NoWorker, saying why, when none could take it however long it waits, and
        ContextLengthExceeded when no pool is large enough for all its choices.
        """
        pools = roster.pools(need.model, need.family)
        prefer = roster.instance(need.prefer)
        # Who failed is avoided, unless there is nobody else: a worker may have recovered.
        for avoid in (need.avoid, ()):
            sought = [(pool, self._decodes(pool, need, avoid, prefer)) for pool in pools]
            if any(found.able for _, sides in sought for found in sides):
                break
        else:
            _require_large_enough(pools, need)
            raise NoWorker(_why_no_decode(roster.workers, need))
        offers = [offer for pool, sides in sought for offer in self._offers(pool, sides, need)]
        if not offers:
            raise NoWorker(_why_unpaired(pools, roster.workers))
        return self._best([offer for offer in offers if offer.decode], need)

    def _decodes(
        self, pool: Pool, need: Need, avoid: Collection[str], prefer: Worker | None
    ) -> tuple[Found, Found]:
        """Decode workers that need a prefill worker, and those that do not."""
        blocks = pool.blocks(need.tokens, need.choices)
        # One choice fits where its longest does.
        least = blocks if need.choices > 1 else 0
        return (
            self._look(pool.decode, need.longest, blocks, avoid, prefer, least),
            self._look(pool.colocated, need.longest, blocks, avoid, prefer, least),
        )

    def _offers(self, pool: Pool, sides: tuple[Found, Found], need: Need) -> Iterator[Offer]:
        """What a pool has for the request; without decode workers where all are full."""
        pairing, colocated = sides
        if colocated.able:
            yield Offer(colocated.roomy, ())
        if not pairing.able:
            return
        # Without room on this side only whether the other could take it matters, not its room.
        blocks = pool.blocks(need.tokens) if pairing.roomy else 0
        prefills = self._look(pool.prefill, need.tokens, blocks, need.avoid, role=Role.PREFILL)
        if not prefills.able and need.local_prefill:
            yield Offer(pairing.roomy, ())
            return
        if not prefills.able and need.avoid:
            prefills = self._look(pool.prefill, need.tokens, blocks, (), role=Role.PREFILL)
        if prefills.able:
            yield Offer(pairing.roomy if prefills.roomy else (), prefills.roomy)

    def _best(self, offers: Sequence[Offer], need: Need) -> Place | None:
        if not offers:
            return None
        partners = {worker: offer.prefill for offer in offers for worker in offer.decode}
        decodes = [worker for offer in offers for worker in offer.decode]
        preferred = [w for w in decodes if w.instance_id == need.prefer] if need.prefer else []
        decode = preferred[0] if preferred else self._lowest(decodes, self._decode)
        prefills = partners[decode]
        return Place(decode, self._lowest(prefills, self._prefill) if prefills else None)

    def _look(
        self,
        workers: Sequence[Worker],
        tokens: int,
        blocks: int,
        avoid: Collection[str],
        prefer: Worker | None = None,
        least: int = 0,
        role: Role = Role.DECODE,
    ) -> Found:
        """Those that can hold ``tokens``, in a pool of at least ``least`` blocks, and of them up to
        WIDTH with room for ``blocks``: from a random one on, the preferred one first."""
        start = self._rng.randrange(len(workers)) if len(workers) > WIDTH else 0
        first = (prefer,) if prefer is not None and prefer in workers else ()
        able, roomy = False, []
        for worker in chain(first, islice(workers, start, None), islice(workers, start)):
            if worker.report.max_model_len < tokens or worker.all_blocks < least:
                continue
            if avoid and worker.instance_id in avoid:
                continue
            able = True
            if worker.has_room(blocks, role):
                roomy.append(worker)
                if len(roomy) == WIDTH:
                    break
        return Found(able, roomy)

    def _lowest(self, workers: Sequence[Worker], score: Score) -> Worker:
        scores = [(worker.health is Health.SUSPECT, score(worker)) for worker in workers]
        lowest = min(scores)
        return self._rng.choice([w for w, s in zip(workers, scores, strict=True) if s == lowest])


def _require_large_enough(pools: Iterable[Pool], need: Need) -> None:
    """Raise ContextLengthExceeded where only the number of choices is too much for all."""
    long_enough = [
        worker
        for pool in pools
        for worker in (*pool.decode, *pool.colocated)
        if worker.report.max_model_len >= need.longest
    ]
    if long_enough:
        largest = max(long_enough, key=lambda w: w.all_blocks)
        raise ContextLengthExceeded(
            f"{need.choices} choices of {need.tokens} tokens begin with "
            f"{largest.blocks(need.tokens, need.choices)} KV blocks, but the largest decode "
            f"worker's pool has {largest.all_blocks}"
        )


def _why_no_decode(workers: Sequence[Worker], need: Need) -> str:
    """Why no decode worker can take it; names what those that are there serve instead."""
    there = [w for w in workers if Role.DECODE in w.report.roles]
    others = sorted({w.report.model for w in there} - {need.model})
    why = f"no healthy decode worker serves {need.model!r}"
    return f"{why}; there are some for {', '.join(map(repr, others))}" if others else why


def _why_unpaired(pools: Iterable[Pool], workers: Sequence[Worker]) -> str:
    """Why there is no prefill worker for any decode worker of ``pools``; names both values when
    classes differ."""
    decode = next(worker for pool in pools for worker in pool.decode)
    for worker in workers:
        if Role.PREFILL in worker.report.roles and not worker.report.draining:
            try:
                decode.report.identity.require_pair(worker.report.identity)
            except IncompatiblePeer as error:
                return (
                    f"prefill worker {worker.address} cannot serve decode worker "
                    f"{decode.address}: {error.message}"
                )
    return "no healthy prefill worker"
