"""The workers that may get work, sorted by what placement asks of them.

A value: made anew when a worker comes, goes, drains or changes its health, which is rare, so that
a placement need not look at the whole fleet. Loads change all the time; they are the workers' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from baton.identity import Family, Role
from gateway.fleet import Worker, kv_blocks
from gateway.ring import Ring


class Workers(list[Worker]):
    """Those of a pool that do the same."""

    @cached_property
    def members(self) -> frozenset[Worker]:
        """Made when first asked for, once all are in; so is ``ring``."""
        return frozenset(self)

    @cached_property
    def ring(self) -> Ring[Worker]:
        return Ring((worker.instance_id, worker) for worker in self)


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that serve one model and may pair: one family, none draining."""

    family: Family
    block_size: int  #: tokens
    decode: Workers = field(default_factory=Workers)  #: need a prefill worker
    colocated: Workers = field(default_factory=Workers)  #: decode, and prefill by themselves
    prefill: Workers = field(default_factory=Workers)

    def blocks(self, tokens: int, choices: int = 0) -> int:
        """See ``kv_blocks``."""
        return kv_blocks(tokens, self.block_size, choices)


class Roster:
    """``workers``: healthy and suspect ones, the draining included, which are in no pool."""

    def __init__(self, workers: Iterable[Worker] = ()) -> None:
        self.workers = tuple(workers)
        self._by_instance = {worker.instance_id: worker for worker in self.workers}
        self._pools: dict[str, list[Pool]] = {}
        found = self.all_pools = dict[tuple[str, Family], Pool]()  #: by model and family
        for worker in self.workers:
            report = worker.report
            if report.draining:
                continue
            key = (report.model, report.identity.family)
            if (pool := found.get(key)) is None:
                pool = found[key] = Pool(key[1], report.compatibility.block_size)
                self._pools.setdefault(report.model, []).append(pool)
            if Role.DECODE in report.roles:
                (pool.colocated if report.local_prefill else pool.decode).append(worker)
            if Role.PREFILL in report.roles:
                pool.prefill.append(worker)
        self.decodes = sum(len(p.decode) + len(p.colocated) for p in found.values())
        #: Tokens of the longest sequence any decode worker can hold; None without one.
        self.longest_sequence = _longest(w for w in self.workers if Role.DECODE in w.report.roles)
        #: Tokens of the longest prompt any worker can compute; None while none is known.
        self.longest_prompt = _longest(
            w for w in self.workers if Role.PREFILL in w.report.roles or w.report.local_prefill
        )

    def pools(self, model: str, family: Family | None) -> Sequence[Pool]:
        """Those that serve ``model``; only the one of ``family`` where that is given."""
        serving = self._pools.get(model, ())
        return serving if family is None else [p for p in serving if p.family == family]

    def family(self, model: str, digest: str) -> Family | None:
        """Of some workers that serve ``model``, by its name."""
        families = (pool.family for pool in self._pools.get(model, ()))
        return next((family for family in families if family.digest == digest), None)

    def instance(self, instance_id: str) -> Worker | None:
        return self._by_instance.get(instance_id)


def _longest(workers: Iterable[Worker]) -> int | None:
    return max((worker.report.max_model_len for worker in workers), default=None)
