"""A simulated run: a fleet, what is asked of it, and what comes of that.

The real code decides: admission, waiting room, placement with its policies and bookings
(``gateway``), the decode worker's choice where to prefill (``decode_worker.prefill_choice``), and
the scheduler with its compute queue, memory, prefix cache and cost estimates (``model``). It is
given virtual time. What stands for the rest is here: how long a step, a message and a transfer take
(``bench.costs``), when a worker tells its load, and what follows from what (``attempt.py``,
``front.py``). No worker fails, changes its role or lags behind.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baton.identity import Role
from baton.settings import UpSettings
from bench.costs import Costs
from bench.simulate.clock import Clock, ps
from bench.simulate.front import Gateway
from bench.simulate.jobs import Job
from bench.simulate.machine import Kind, Machine
from bench.simulate.neighbours import Neighbours
from bench.simulate.outcome import Outcome
from gateway.policies import Weights, policies
from model.worker.service import LOOK


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many workers of which kind. Raises ValueError for a fleet that serves nobody."""

    prefill: int = 0
    decode: int = 0
    colocated: int = 0

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode, self.colocated) < 0:
            raise ValueError(f"{self}: there are no fewer than 0 workers of a kind")
        if not self.colocated and not (self.prefill and self.decode):
            raise ValueError(f"{self}: it takes --prefill and --decode, or --colocated")

    def __str__(self) -> str:
        parts = ((self.prefill, "P"), (self.decode, "D"), (self.colocated, "colocated"))
        return " + ".join(f"{count} {name}" for count, name in parts if count) or "no workers"

    @property
    def workers(self) -> int:
        return self.prefill + self.decode + self.colocated


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A fleet and how it is run."""

    fleet: Fleet
    settings: UpSettings
    costs: Costs
    blocks: int  #: of KV per worker
    longest: int  #: tokens of prompt and answer that a worker takes
    caching: bool = False  #: keep KV of prompts for others; needless where none share
    leaps: bool = True  #: many decode steps at once, in closed form
    seed: int = 0


class Simulation:
    """One run; ``machines`` can be looked at afterwards."""

    def __init__(self, setup: Setup) -> None:
        self.clock = Clock()
        self.outcome = Outcome()
        self._rng = random.Random(setup.seed)
        settings = setup.settings
        chosen = policies(settings.placement, Weights(**settings.weights))
        self.gateway = Gateway(self.clock, settings, setup.costs, chosen, self._rng, self.outcome)
        kind = Kind(
            settings=settings,
            costs=setup.costs,
            blocks=setup.blocks,
            longest=setup.longest,
            caching=setup.caching,
            leaps=setup.leaps,
        )
        self.machines = list(self._machines(kind, setup.fleet))
        self.gateway.follow(self.machines)
        for machine in self.machines:
            machine.tell(chosen.caches)

    def run(self, jobs: Iterable[Job]) -> Outcome:
        """Until all are answered or refused. Raises ValueError when they are not in order."""
        coming = iter(jobs)
        self._next(coming)
        self.clock.run()
        self._close()
        return self.outcome

    def check(self) -> list[str]:
        """One line per violation of a worker's books, and for whatever is left of a request."""
        wrong = list[str]()
        for machine in self.machines:
            scheduler, name = machine.node.scheduler, machine.worker.address
            wrong += [f"{name}: {line}" for line in scheduler.check()]
            if scheduler.live or scheduler.pool.counts().owned:
                wrong.append(f"{name}: {scheduler.live} sequences are left")
        if self.gateway.admission.tokens or len(self.gateway.room):
            wrong.append("the gateway still counts requests")
        return wrong

    def _machines(self, kind: Kind, fleet: Fleet) -> Iterator[Machine]:
        roles = [(Role.PREFILL, False)] * fleet.prefill + [(Role.DECODE, False)] * fleet.decode
        roles += [(Role.DECODE, True)] * fleet.colocated
        neighbours = Neighbours(kind.costs)
        for number, (role, colocated) in enumerate(roles):
            yield Machine(
                self.clock,
                kind,
                number,
                role,
                colocated=colocated,
                phase=self._rng.uniform(0.0, LOOK),
                neighbours=neighbours,
                gaps=self.outcome.gaps,
                news=self.gateway.room.changed,
            )

    def _next(self, coming: Iterator[Job]) -> None:
        job = next(coming, None)
        if job is None:
            return

        def arrive() -> None:
            outcome = self.outcome
            outcome.asked += 1
            outcome.prompt_tokens += job.tokens
            outcome.span = job.at
            self.gateway.arrive(job)
            self._next(coming)

        self.clock.at(ps(job.at), arrive)

    def _close(self) -> None:
        """What all workers did."""
        took = ps(self.outcome.ended) or 1
        by_role: dict[str, list[float]] = {}
        for machine in self.machines:
            by_role.setdefault(machine.role.value, []).append(machine.node.busy / took)
        self.outcome.busy = {role: sum(each) / len(each) for role, each in by_role.items()}
        ports = [port.carried for machine in self.machines for port in (machine.out, machine.into)]
        self.outcome.network = max(ports) / took


def simulate(setup: Setup, jobs: Iterable[Job]) -> Outcome:
    """Run it to the end. Raises RuntimeError when a worker's books do not balance then."""
    simulation = Simulation(setup)
    outcome = simulation.run(jobs)
    if wrong := simulation.check():
        raise RuntimeError("the simulated workers' books are wrong: " + "; ".join(wrong[:5]))
    return outcome
