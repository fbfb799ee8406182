"""Which workers take a request: of those that can, the one with the lowest score of a policy.

Everything here is plain computation over ``Worker`` values: no clock, no I/O, randomness passed
in. What is compared, and by what score, is in ``policies.py``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from statistics import fmean
from typing import NamedTuple

from baton.errors import ContextLengthExceeded, IncompatiblePeer, NoWorker
from baton.identity import Family, Role, require_pair
from gateway.caches import Hits, Prefix
from gateway.explanation import Explanation, Pick, explain
from gateway.fleet import Health, Worker
from gateway.policies import WIDTH, Asked, Policies, Policy
from gateway.roster import Pool, Roster, Workers


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
    #: Instance that holds this request's blocks in its cache, empty for none: it is no replay.
    prefer: str = ""
    #: Without a prefill worker the decode worker may compute the prompt itself.
    local_prefill: bool = False
    #: What prefix caches may know of it; None for a request of which only that matters which
    #: workers there are.
    prefix: Prefix | None = None
    explain: bool = False  #: ``Place.explanation`` is wanted


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt runs. ``prefill`` is None when the decode worker computes the prompt."""

    decode: Worker
    prefill: Worker | None
    cached: int = 0  #: tokens that whoever computes the prompt caches, as far as is known
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Workers for one side of a request."""

    able: bool  #: some could take it, whether they have room now or not
    roomy: Sequence[Worker]  #: some of those that have room now
    asked: Asked  #: by which their scores are


@dataclass(frozen=True, slots=True)
class Offer:
    """Decode workers with room, and the prefill workers that go with any of them."""

    decode: Found
    prefill: Found | None  #: None: the decode worker computes the prompt itself


class Placement:
    """Chooses by one policy per role, among all that have room or, in a large fleet, some."""

    def __init__(self, rng: random.Random, policies: Policies) -> None:
        self._rng = rng
        self._policies = policies

    @property
    def policy(self) -> str:
        """By name."""
        return self._policies.prefill.name

    @property
    def known_blocks(self) -> int:
        """Different blocks that workers are known to cache."""
        return len(self._policies.caches or ())

    def choose(self, roster: Roster, need: Need) -> Place | None:
        """A decode worker, and a prefill worker of its class unless it prefills itself.

        None when every worker that could take the request is full at the moment. Raises
        NoWorker, saying why, when none could take it however long it waits, and
        ContextLengthExceeded when no pool is large enough for all its choices.
        """
        pools = [(pool, self._hits(pool, need)) for pool in roster.pools(need.model, need.family)]
        prefer = roster.instance(need.prefer)
        # Who failed is avoided, unless there is nobody else: a worker may have recovered.
        for avoid in (need.avoid, ()):
            sought = [(*pool, self._decodes(*pool, need, avoid, prefer)) for pool in pools]
            if any(found.able for *_, sides in sought for found in sides):
                break
        else:
            _require_large_enough((pool for pool, _ in pools), need)
            raise NoWorker(_why_no_decode(roster.workers, need))
        offers = [offer for one in sought for offer in self._offers(*one, need)]
        if not offers:
            raise NoWorker(_why_unpaired((pool for pool, _ in pools), roster.workers))
        return self._best([offer for offer in offers if offer.decode.roomy], need, prefer)

    def _hits(self, pool: Pool, need: Need) -> Hits | None:
        """What of the request is cached in a pool."""
        caches, layout = self._policies.caches, pool.family.compatibility
        if caches is None or need.prefix is None or layout is None:
            return None
        return caches.look_up(need.prefix.chain(layout))

    def serves(self, roster: Roster, model: str) -> bool:
        """Whether some request would find workers, full or not."""
        try:
            self.choose(roster, Need(model=model, tokens=1, longest=1))
        except NoWorker:
            return False
        return True

    def _decodes(
        self,
        pool: Pool,
        hits: Hits | None,
        need: Need,
        avoid: Collection[str],
        prefer: Worker | None,
    ) -> tuple[Found, Found]:
        """Decode workers that need a prefill worker, and those that do not."""
        policy, blocks = self._policies.decode, pool.blocks(need.tokens, need.choices)
        # One choice fits where its longest does.
        least = blocks if need.choices > 1 else 0

        def look(workers: Workers) -> Found:
            asked = _ask(need, hits)
            size = _Size(need.longest, blocks, least, replay=bool(need.prefer))
            return self._look(workers, policy, size, avoid, asked, prefer)

        return look(pool.decode), look(pool.colocated)

    def _offers(
        self, pool: Pool, hits: Hits | None, sides: tuple[Found, Found], need: Need
    ) -> Iterator[Offer]:
        """What a pool has for the request; without decode workers where all are full."""
        pairing, colocated = sides
        if colocated.able:
            yield Offer(colocated, None)
        if not pairing.able:
            return
        # Without room on this side only whether the other could take it matters, not its room.
        blocks = pool.blocks(need.tokens) if pairing.roomy else 0
        policy, asked = self._policies.prefill, _ask(need, hits)
        size = _Size(need.tokens, blocks, role=Role.PREFILL)
        prefills = self._look(pool.prefill, policy, size, need.avoid, asked)
        if not prefills.able and need.local_prefill:
            yield Offer(pairing, None)
            return
        if not prefills.able and need.avoid:
            prefills = self._look(pool.prefill, policy, size, (), asked)
        if prefills.able:
            yield Offer(pairing if prefills.roomy else Found(True, (), asked), prefills)

    def _best(self, offers: Sequence[Offer], need: Need, prefer: Worker | None) -> Place | None:
        if not offers:
            return None
        policies = self._policies
        partners = {worker: offer.prefill for offer in offers for worker in offer.decode.roomy}
        decode = self._lowest([offer.decode for offer in offers], policies.decode, prefer)
        prefill, found = None, partners[decode.worker]
        if found is not None:
            found.asked.hand_to(decode.worker)
            prefill = self._lowest([found], policies.prefill)
        computing = prefill or decode
        return Place(
            decode.worker,
            None if prefill is None else prefill.worker,
            computing.asked.cached(computing.worker),
            explain(self.policy, decode, prefill) if need.explain else None,
        )

    def _look(
        self,
        workers: Workers,
        policy: Policy,
        size: _Size,
        avoid: Collection[str],
        asked: Asked,
        prefer: Worker | None = None,
    ) -> Found:
        """Those that could ever take it, and of them some with room: the preferred one, those that
        the policy proposes, others from a random one on."""
        if not workers:
            return Found(False, (), asked)
        start = self._rng.randrange(len(workers)) if len(workers) > WIDTH else 0
        first = () if prefer is None else (prefer,)
        named = dict.fromkeys(chain(first, policy.propose(workers, asked, self._rng)))
        mine = [worker for worker in named if worker in workers.members]
        able, roomy = _fit(mine, size, avoid, len(mine))
        asked.proposed = tuple(roomy)
        beside = policy.beside if roomy else WIDTH
        if beside:
            others: Iterable[Worker] = chain(islice(workers, start, None), islice(workers, start))
            if roomy:
                others = (worker for worker in others if worker not in asked.proposed)
            also, more = _fit(others, size, avoid, beside)
            able, roomy = able or also, roomy + more
        return Found(able, roomy, asked)

    def _lowest(self, sides: Sequence[Found], policy: Policy, prefer: Worker | None = None) -> Pick:
        """Of all workers found; suspects are a last resort."""
        compared = [(worker, found.asked) for found in sides for worker in found.roomy]
        for worker, asked in compared:
            if worker is prefer:
                return Pick(worker, asked, "its cache holds what came before", [], compared)
        known = [t for worker, _ in compared if (t := worker.report.load.prefill_token)]
        for found in sides if known else ():
            found.asked.token_s = fmean(known)
        scores = [
            (worker.health is Health.SUSPECT, policy.score(worker, asked))
            for worker, asked in compared
        ]
        lowest = min(scores)
        equal = [one for one, score in zip(compared, scores, strict=True) if score == lowest]
        worker, asked = self._rng.choice(equal)
        why = "lowest score" if len(equal) == 1 else f"drawn from {len(equal)} equal ones"
        return Pick(worker, asked, why, scores, compared)


def _ask(need: Need, hits: Hits | None) -> Asked:
    return Asked(tokens=need.tokens, prefix=need.prefix, hits=hits)


class _Size(NamedTuple):
    """What a worker must have."""

    tokens: int  #: that a sequence there may have
    blocks: int  #: free, now
    least: int = 0  #: blocks in all
    replay: bool = False  #: may have what is kept for replays
    role: Role = Role.DECODE


def _fit(
    workers: Iterable[Worker], size: _Size, avoid: Collection[str], most: int
) -> tuple[bool, list[Worker]]:
    """Whether some could ever take it; of these, up to ``most`` that have room now."""
    able, roomy = False, []
    for worker in workers:
        if worker.report.max_model_len < size.tokens:
            continue
        if size.least and worker.all_blocks < size.least:
            continue
        if avoid and worker.instance_id in avoid:
            continue
        able = True
        if worker.has_room(size.blocks, size.role, replay=size.replay):
            roomy.append(worker)
            if len(roomy) == most:
                break
    return able, roomy


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
                require_pair(prefill=worker.report.identity, decode=decode.report.identity)
            except IncompatiblePeer as error:
                return (
                    f"prefill worker {worker.address} cannot serve decode worker "
                    f"{decode.address}: {error.message}"
                )
    return "no healthy prefill worker"
