"""A simulated worker as the gateway and its peers know it: its load, its cache, its network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from baton.identity import CompatibilityClass, Identity, Role
from baton.settings import UpSettings
from bench.costs import Costs
from bench.simulate.clock import Clock, ps
from bench.simulate.gaps import Gaps
from bench.simulate.neighbours import Neighbours
from bench.simulate.network import Port
from bench.simulate.node import Node
from bench.simulate.scheduler import Leaping
from decode_worker.prefill_choice import Chooser
from gateway.caches import CacheIndex
from gateway.fleet import Links, Load, Report, Worker
from model.engine.settings import SchedulerSettings
from model.worker.cache_watch import CacheWatch
from model.worker.service import LOOK

#: Of the KV that is moved; how many bytes a token has is the cost model's.
LAYERS = 30
MODEL = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is the same in all workers of a run."""

    settings: UpSettings
    costs: Costs
    blocks: int  #: of KV
    longest: int  #: tokens of prompt and answer
    caching: bool  #: prompts may share
    leaps: bool  #: see ``Node``

    @property
    def layout(self) -> CompatibilityClass:
        return CompatibilityClass(MODEL, LAYERS, 1, 1, self.settings.block_size)

    def scheduler(self) -> Leaping:
        settings = self.settings
        limits = SchedulerSettings(
            block_size=settings.block_size,
            max_model_len=self.longest,
            max_tokens_per_step=settings.max_step_tokens,
            chunk_tokens=settings.chunk_tokens,
            max_running=settings.max_running,
            prefill_order=settings.prefill_order,
            itl_target_s=settings.itl_target_ms / 1e3,
        )
        return Leaping(limits, self.blocks, self.layout.layout, caching=self.caching)


class Machine:
    """One worker."""

    def __init__(
        self,
        clock: Clock,
        kind: Kind,
        number: int,
        role: Role,
        *,
        colocated: bool,
        phase: float,
        neighbours: Neighbours,
        gaps: Gaps,
        news: Callable[[], None],
    ) -> None:
        """``phase``: when it looks at its load, seconds after each multiple of ``LOOK``. ``news``
        is called when the gateway has heard from it."""
        self._clock = clock
        self._kind = kind
        self._colocated = colocated
        self._phase = phase
        self._news = news
        self._due = False
        self._caches: CacheIndex | None = None
        self.role = role
        self.node = Node(clock, kind.scheduler(), neighbours, gaps, self._changed, leaps=kind.leaps)
        self._watch = CacheWatch(self.node)
        self.chooser = Chooser(self.node, kind.layout, kind.settings, colocated=colocated)
        self.out, self.into = Port(), Port()
        self._identity = Identity(f"{number:032x}", kind.layout)
        speed = kind.costs.bytes_per_s
        self._links = Links({}, speed)
        self.worker = Worker(f"w{number}:1", self._report())

    def tell(self, caches: CacheIndex | None) -> None:
        """What it caches goes here from now on."""
        self._caches = caches
        self._look()

    def _changed(self) -> None:
        """Its next look sees something new, and the gateway hears of it."""
        if not self._due:
            self._due = True
            looks = math.floor((self._clock() - self._phase) / LOOK) + 1
            self._clock.at(
                max(self._clock.now, ps(looks * LOOK + self._phase + self._kind.costs.hop_s)),
                self._look,
            )

    def _look(self) -> None:
        self._due = False
        self.worker.reported(self._report(), self._clock())
        if self._caches is not None and (changes := self._watch.news()) is not None:
            self._caches.apply(self.worker, changes)
        self._news()

    def _report(self) -> Report:
        load, settings = self.node.look(), self._kind.settings
        return Report(
            identity=self._identity,
            roles=frozenset({self.role}),
            local_prefill=self._colocated,
            model=MODEL,
            max_model_len=min(self._kind.longest, self._kind.blocks * settings.block_size),
            vocab_size=1,
            load=Load(
                queued_tokens=load.queued_tokens,
                running=load.running,
                waiting=load.waiting,
                blocks_free=load.blocks.free,
                blocks_cached=load.blocks.cached,
                blocks_owned=load.blocks.owned,
                blocks_quarantined=load.blocks.quarantined,
                steps=load.steps,
                last_step=load.last_step_s,
                prefill_token=load.costs.prefill_token_s,
                prefill_room=load.prefill_room,
            ),
            transports=(),
            draining=False,
            max_running=settings.max_running,
            links=self._links,
        )
