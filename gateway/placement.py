"""Which workers take a request: small scores over the fleet's state, lowest first.

Everything here is plain computation over ``Worker`` values: no clock, no I/O, randomness passed
in. A new policy is a new ``Score``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from baton.errors import IncompatiblePeer, NoWorker
from baton.identity import Family
from gateway.fleet import Health, Role, Worker

#: The lowest score takes the request; equal ones are drawn from.
Score = Callable[[Worker], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request asks of the workers that take it."""

    model: str  #: name under which it is served
    tokens: int  #: prompt and generated so far: the KV to be there before the next token
    longest: int  #: tokens of prompt and answer at most
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


class Placement:
    """Chooses by one score per role."""

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

    def choose(self, workers: Sequence[Worker], need: Need) -> Place | None:
        """A decode worker, and a prefill worker of its class unless it prefills itself.

        None when every worker that could take the request is full at the moment. Raises
        NoWorker, saying why, when none could take it however long it waits.
        """
        decodes = _spared(_able(workers, Role.DECODE, need, need.longest), need.avoid)
        if not decodes:
            raise NoWorker(_why_no_decode(workers, need))
        prefills = _able(workers, Role.PREFILL, need, need.tokens)
        pairs = {
            decode.instance_id: found
            for decode in decodes
            if (found := self._partners(decode, prefills, need)) is not None
        }
        if not pairs:
            raise NoWorker(_why_unpaired(decodes[0], workers))
        roomy = [
            decode
            for decode in decodes
            if decode.has_room(need.tokens + 1)
            and (found := pairs.get(decode.instance_id)) is not None
            and (not found or any(p.has_room(need.tokens) for p in found))
        ]
        if not roomy:
            return None
        preferred = [w for w in roomy if w.instance_id == need.prefer]
        decode = preferred[0] if preferred else self._lowest(roomy, self._decode)
        partners = [p for p in pairs[decode.instance_id] if p.has_room(need.tokens)]
        return Place(decode, self._lowest(partners, self._prefill) if partners else None)

    def serves(self, workers: Sequence[Worker], model: str) -> bool:
        """Whether some request would find workers, full or not."""
        try:
            self.choose(workers, Need(model=model, tokens=1, longest=1))
        except NoWorker:
            return False
        return True

    def _partners(
        self, decode: Worker, prefills: Sequence[Worker], need: Need
    ) -> list[Worker] | None:
        """Prefill workers for a decode worker; empty for local prefill, None for no way."""
        if decode.report.local_prefill:
            return []
        same = [p for p in prefills if p.report.identity.family == decode.report.identity.family]
        found = [p for p in same if p.instance_id not in need.avoid]
        if found:
            return found
        if need.local_prefill:
            return []
        return same or None

    def _lowest(self, workers: Sequence[Worker], score: Score) -> Worker:
        scores = [(worker.health is Health.SUSPECT, score(worker)) for worker in workers]
        lowest = min(scores)
        return self._rng.choice([w for w, s in zip(workers, scores, strict=True) if s == lowest])


def _able(workers: Sequence[Worker], role: Role, need: Need, tokens: int) -> list[Worker]:
    """Workers of a role that could hold the request, whether they have room now or not."""
    return [
        worker
        for worker in workers
        if role in worker.report.roles
        and not worker.report.draining
        and worker.report.model == need.model
        and worker.report.max_model_len >= tokens
        and need.family in (None, worker.report.identity.family)
    ]


def _spared(workers: list[Worker], avoid: Collection[str]) -> list[Worker]:
    """Without those to avoid, unless that leaves none: a worker may have recovered."""
    return [w for w in workers if w.instance_id not in avoid] or workers


def _why_no_decode(workers: Sequence[Worker], need: Need) -> str:
    """Why no decode worker can take it; names what those that are there serve instead."""
    there = [w for w in workers if Role.DECODE in w.report.roles]
    others = sorted({w.report.model for w in there} - {need.model})
    why = f"no healthy decode worker serves {need.model!r}"
    return f"{why}; there are some for {', '.join(map(repr, others))}" if others else why


def _why_unpaired(decode: Worker, workers: Sequence[Worker]) -> str:
    """Why there is no prefill worker for ``decode``; names both values when classes differ."""
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


def longest_sequence(workers: Sequence[Worker]) -> int | None:
    """Tokens of the longest sequence any decode worker can hold; None without one."""
    return max(
        (w.report.max_model_len for w in workers if Role.DECODE in w.report.roles), default=None
    )


def longest_prompt(workers: Sequence[Worker]) -> int | None:
    """Tokens of the longest prompt any worker can compute; None while none is known."""
    return max(
        (
            w.report.max_model_len
            for w in workers
            if Role.PREFILL in w.report.roles or w.report.local_prefill
        ),
        default=None,
    )
