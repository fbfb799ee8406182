"""Placement policies: for each side of a request, which workers to compare, and by what score.

A policy is a value made of small functions over one state: the workers' loads, what they cache,
how fast KV moves between them, and what the request asks (``Asked``). ``placement.py`` sees to
room, health and classes, whatever the policy. A new one is a new entry of ``_MAKERS``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from baton.identity import CompatibilityClass
from gateway.caches import CacheIndex, Hits, Prefix
from gateway.fleet import Worker
from gateway.roster import Workers

#: Workers with room that are compared for one side of a request. Up to so many the choice is the
#: best of all. Beyond, the best of so many, from a random one on: next to no worse (two would
#: nearly do: Mitzenmacher, "The power of two choices in randomized load balancing"), bounded in
#: time, and several gateways with the same reports do not all run to one worker.
WIDTH = 16
#: Workers that hold some of a prompt and are looked at: those with the most of it.
_HOLDERS = 2 * WIDTH
#: KV tokens of live sequences that weigh as much on a decode worker as one prompt token to be
#: computed: they slow down each step a little, where that one takes its share of a step once.
LIVE_TOKENS = 8
#: Seconds per prompt token where no worker has measured it: between those of a CPU and of a GPU.
_NOMINAL = 1e-4


@dataclass(slots=True, kw_only=True)
class Asked:
    """A request as policies see it, in one pool."""

    tokens: int  #: prompt and generated
    prefix: Prefix | None = None
    hits: Hits | None = None  #: None where nobody tells what is cached
    decode: Worker | None = None  #: chosen before the prefill worker is
    to_move: int = 0  #: tokens whose KV that one misses
    proposed: Sequence[Worker] = ()  #: by the policy, those that have room, in its order
    #: Seconds per prompt token of a worker that did not measure it: the mean of those compared.
    token_s: float = _NOMINAL

    def cached(self, worker: Worker) -> int:
        """Of its tokens, those that a worker caches, as far as is known."""
        return 0 if self.hits is None else self.hits.tokens(worker)

    def missing(self, worker: Worker) -> int:
        """The others."""
        return self.tokens - self.cached(worker)

    def hand_to(self, decode: Worker) -> None:
        """The decode worker is chosen."""
        self.decode, self.to_move = decode, self.missing(decode)

    def transfer(self, worker: Worker) -> float:
        """Seconds to move the KV that the decode worker misses: from ``worker`` where that one is
        chosen, else to ``worker``, from anywhere. 0 where nothing was measured."""
        if self.decode is None:
            tokens, speed = self.missing(worker), worker.report.links.mean
        else:
            tokens, speed = self.to_move, self.decode.report.links.bytes_per_s(worker.instance_id)
        return tokens * _token_bytes(worker.report.compatibility) / speed if speed else 0.0


#: The lowest score takes the request; equal ones are drawn from.
Score = Callable[[Worker, Asked], tuple[float, ...]]
#: Workers to compare, whoever else is.
Proposal = Callable[[Workers, Asked, random.Random], Iterable[Worker]]


def _nobody(workers: Workers, asked: Asked, rng: random.Random) -> Iterable[Worker]:
    return ()


@dataclass(frozen=True, slots=True)
class Policy:
    """How one side of a request is chosen."""

    name: str
    score: Score
    propose: Proposal = _nobody
    #: Workers compared beside the proposed ones, from a random one on. Where no proposed one has
    #: room it is WIDTH.
    beside: int = WIDTH


@dataclass(frozen=True, slots=True)
class Policies:
    """One for each side."""

    decode: Policy
    prefill: Policy
    caches: CacheIndex | None = None  #: what workers cache, where a policy asks for it


# -- scores ------------------------------------------------------------------------------------


def most_room(worker: Worker, asked: Asked) -> tuple[float, ...]:
    """Fewest prompt tokens to compute there, then most free KV, then fewest sequences."""
    load = worker.report.load
    return (worker.queued_tokens, -worker.room_blocks, load.running + load.waiting)


def least_queued(worker: Worker, asked: Asked) -> tuple[float, ...]:
    """Fewest prompt tokens waiting for compute."""
    return (worker.queued_tokens,)


def first_done(worker: Worker, asked: Asked) -> tuple[float, ...]:
    """Fewest prompt tokens to compute until this one is: those queued and those not cached."""
    return (worker.queued_tokens + asked.missing(worker),)


def held_beside_load(worker: Worker, asked: Asked) -> tuple[float, ...]:
    """The same, and what is decoded there already."""
    return (_load(worker) + asked.missing(worker), -worker.room_blocks)


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the terms of a score, each in seconds."""

    cache: float
    load: float
    transfer: float

    def score(self, worker: Worker, asked: Asked) -> tuple[float, ...]:
        """What waits before it, less what it need not compute, and what moving its KV takes."""
        token_s = worker.report.load.prefill_token or asked.token_s
        load, cached = _load(worker) * token_s, asked.cached(worker) * token_s
        transfer = asked.transfer(worker)
        return (self.load * load - self.cache * cached + self.transfer * transfer,)


def _load(worker: Worker) -> float:
    """Tokens to compute, those of the prompts queued and of the sequences decoded."""
    decodes = worker.live_tokens / LIVE_TOKENS if worker.decodes else 0.0
    return worker.queued_tokens + decodes


def _token_bytes(layout: CompatibilityClass) -> float:
    """KV of one token in all layers."""
    return layout.layers * layout.block_bytes / layout.block_size


# -- proposals ---------------------------------------------------------------------------------


def holders(workers: Workers, asked: Asked, rng: random.Random) -> Iterable[Worker]:
    """Those that cache most of the prompt."""
    return () if asked.hits is None else islice(asked.hits.holders(rng), _HOLDERS)


def two(workers: Workers, asked: Asked, rng: random.Random) -> Iterable[Worker]:
    """Two at random."""
    return rng.sample(workers, min(2, len(workers)))


def by_session(workers: Workers, asked: Asked, rng: random.Random) -> Iterable[Worker]:
    """Whose the session is, and whose it would be without that one, and so on."""
    return () if asked.prefix is None else workers.ring.nearest(asked.prefix.session)


def in_order(score: Score) -> Score:
    """The proposed ones in their order; ``score`` tells the others apart."""

    def ranked(worker: Worker, asked: Asked) -> tuple[float, ...]:
        proposed = asked.proposed
        rank = proposed.index(worker) if worker in proposed else len(proposed)
        return (rank, *score(worker, asked))

    return ranked


# -- by name -----------------------------------------------------------------------------------


def _least_queued(name: str, weights: Weights) -> Policies:
    return Policies(Policy(name, most_room), Policy(name, least_queued))


def _two_choices(name: str, weights: Weights) -> Policies:
    return Policies(Policy(name, most_room, two, 0), Policy(name, least_queued, two, 0))


def _affinity(name: str, weights: Weights) -> Policies:
    decode = Policy(name, in_order(most_room), by_session, 0)
    return Policies(decode, Policy(name, in_order(least_queued), by_session, 0))


def _prefix(name: str, weights: Weights) -> Policies:
    decode = Policy(name, held_beside_load, holders)
    return Policies(decode, Policy(name, first_done, holders), CacheIndex())


def _score(name: str, weights: Weights) -> Policies:
    policy = Policy(name, weights.score, holders)
    return Policies(policy, policy, CacheIndex())


_MAKERS: Mapping[str, Callable[[str, Weights], Policies]] = {
    "least-queued": _least_queued,
    "prefix": _prefix,
    "two-choices": _two_choices,
    "affinity": _affinity,
    "score": _score,
}


def policies(name: str, weights: Weights) -> Policies:
    """Those of a name of ``baton.settings.PlacementName``; ``weights`` are those of "score"."""
    return _MAKERS[name](name, weights)
