"""A worker process in virtual time: the scheduler, and when its steps end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from bench.simulate.clock import PS, Clock
from bench.simulate.gaps import Gaps
from bench.simulate.neighbours import Neighbours
from bench.simulate.prices import Prices
from bench.simulate.scheduler import TOKEN, Leaping
from model.cache.blocks import BlockCounts
from model.cache.journal import Changes
from model.engine.engine import Load
from model.engine.events import SequencePreempted, TokenSampled
from model.engine.plan import StepPlan, StepResult
from model.engine.sequence import Reservation, SequenceRequest

T = TypeVar("T")


class Hears(Protocol):
    """Whoever asked for a sequence."""

    def chunk(self, end: int, took: int) -> None:
        """KV of a prompt to be handed over is computed up to ``end``; that took so many ps."""

    def first(self) -> None:
        """The prompt is computed, and the first token drawn."""

    def second(self) -> None:
        """The first decode step is over."""

    def ended(self) -> None:
        """The last token is there."""

    def preempted(self, generated: int) -> None:
        """It gave its blocks to another; so many tokens had been generated."""


@dataclass(slots=True)
class _Run:
    """What the device does now: a planned step, or decode steps of one batch."""

    began: int  #: ps: the first step that is not over yet
    ends: int  #: ps: the last one
    prices: Prices
    plan: StepPlan | None
    steps: int = 1
    sequences: int = 0
    context: int = 0  #: of the first of them
    fresh: int = 0  #: sequences for which the first of them is the first


class Node:
    """Runs one scheduler. With ``leaps`` decode steps between two events are added up in closed
    form; without, each is planned and committed. What comes out is the same."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Leaping,
        neighbours: Neighbours,
        gaps: Gaps,
        changed: Callable[[], None],
        *,
        leaps: bool,
    ) -> None:
        """``changed`` is called when its load may have become another."""
        self._clock = clock
        self.scheduler = scheduler
        self._neighbours = neighbours
        self._gaps = gaps
        self._changed = changed
        self._leaps = leaps
        self._hears: dict[int, Hears] = {}
        self._computing = set[int]()
        self._run: _Run | None = None
        self._computes = False  # as its neighbours know
        neighbours.join(self._cut)
        self._out: list[Callable[[], None]] = []
        self._last_step = 0
        self.busy = 0  #: ps of compute

    # -- commands --------------------------------------------------------------------------

    def add(self, request: SequenceRequest, hears: Hears) -> Reservation:
        """Raises what ``Scheduler.add`` raises."""
        run, tokens = self._run, len(request.prompt_ids) + len(request.generated_ids)
        leaps = run is not None and run.plan is None
        if request.receive and leaps and self.scheduler.roomy(tokens, run.steps):  # type: ignore[union-attr]
            made = self.scheduler.add(request)  # its blocks are all that changes: the run goes on
            self._changed()
        else:
            made = self._command(lambda: self.scheduler.add(request))
        self._hears[made.seq_id] = hears
        if not request.receive:
            self._computing.add(made.seq_id)
        return made

    def activate(self, seq_id: int) -> None:
        """It joins the batch after the step that runs."""
        self._cut()
        self.scheduler.activate(seq_id, TOKEN)
        self._commanded()

    def compute_here(self, seq_id: int) -> None:
        """Raises WorkerFull."""
        self._command(lambda: self.scheduler.compute_here(seq_id))
        self._computing.add(seq_id)

    def cancel(self, seq_id: int) -> None:
        """Or give up what is kept; idempotent."""
        if self._hears.pop(seq_id, None) is not None:
            self._computing.discard(seq_id)
            self._command(lambda: self.scheduler.cancel(seq_id))

    def _command(self, do: Callable[[], T]) -> T:
        self._catch_up()
        self._cut()
        try:
            return do()
        finally:
            self._commanded()

    def _commanded(self) -> None:
        self._changed()
        if self._run is None:
            self._clock.after(0, self._wake)  # after all that is commanded now

    # -- what others see -------------------------------------------------------------------

    def load(self) -> Load:
        """As ``Engine.load``."""
        self._catch_up()
        return self.look()

    def look(self) -> Load:
        """The same, but for what was measured of decode steps (``costs``): those that are over are
        counted, but not taken in, so that a look costs no leap."""
        scheduler, over, last = self.scheduler, self._over(), self._last_step
        blocks = scheduler.pool.counts()
        if over and (run := self._run) is not None:
            blocks = _taken(blocks, scheduler.ahead(over))
            context = run.context + (over - 1) * run.sequences
            last = run.prices.decodes(run.sequences, context)
        return Load(
            queued_tokens=scheduler.queued_tokens,
            running=scheduler.running,
            waiting=scheduler.waiting,
            blocks=blocks,
            steps=scheduler.steps + over,
            last_step_s=last / PS,
            idle=self._run is None,
            draining=False,
            costs=scheduler.costs.estimate,
            failed=False,
            prefill_room=scheduler.prefill_room,
            totals=scheduler.totals,
            failed_steps=0,
        )

    def cache_changes(self, since: int | None) -> Changes | None:
        """As ``Engine.cache_changes``."""
        self._catch_up()  # what is decoded is cached, too
        pool = self.scheduler.pool
        return None if since == pool.changed else pool.changes(since)

    # -- steps -----------------------------------------------------------------------------

    def _wake(self) -> None:
        self._go()
        self._tell()

    def _go(self) -> None:
        """Begin with the next step, if there is one and none runs."""
        if self._run is not None:
            return
        now = self._clock.now
        steps, sequences, context = self.scheduler.start() if self._leaps else (0, 0, 0)
        if steps:
            prices = self._neighbours.prices(prompts=False, computes=self._computes)
            ends = now + prices.steps(steps, sequences, context)
            if fresh := self.scheduler.take_fresh():
                first = now + prices.decodes(sequences, context)
                self._clock.at(first, lambda: self._second(fresh))
            self._begin(_Run(now, ends, prices, None, steps, sequences, context, len(fresh)))
        elif not self.scheduler.idle:
            plan = self.scheduler.plan()
            self._take_events()
            if plan.slices:
                decodes = self.scheduler.planned_decodes
                prompts = decodes < len(plan.slices)
                prices = self._neighbours.prices(prompts=prompts, computes=self._computes)
                self._begin(_Run(now, now + prices.plan(plan, decodes), prices, plan))
        if self._computes is (self._run is None):
            self._computes = not self._computes
            self._neighbours.turned(self._computes, self._cut)

    def _begin(self, run: _Run) -> None:
        self._run = run
        self._clock.at(run.ends, lambda: self._end(run))

    def _end(self, run: _Run) -> None:
        """The last step is over, unless the run was cut short since that was foreseen."""
        if run is not self._run or run.ends != self._clock.now:
            return
        if run.plan is None:
            self._leap(run, run.steps, running=False)
            self._run = None
        else:
            self._run = None
            self._commit(run, run.plan)
        if self._out or self._computing:
            self._changed()  # that a token more is there matters to nobody
        self._go()
        self._tell()

    def _commit(self, run: _Run, plan: StepPlan) -> None:
        took = run.ends - run.began
        self.busy += took
        self._last_step = took
        fresh = frozenset(self.scheduler.fresh)  # who ends with this step was so, too
        tokens = {part.seq_id: TOKEN for part in plan.slices if part.sample is not None}
        self.scheduler.commit(StepResult(plan.step, tokens, compute_s=took / PS))
        for part in plan.slices:
            if part.export and (hears := self._hears.get(part.seq_id)) is not None:
                self._out.append(partial(hears.chunk, part.end, took))
        self._take_events(took, fresh)

    def _take_events(self, took: int = 0, fresh: Collection[int] = ()) -> None:
        """``fresh``: who had its first decode step in what ``took`` so long."""
        gaps = 0
        for event in self.scheduler.take_events():
            if isinstance(event, SequencePreempted):
                generated = self.scheduler.preempted.pop(event.seq_id)
                hears = self._hears.pop(event.seq_id)
                self._computing.discard(event.seq_id)
                self._out.append(partial(hears.preempted, generated))
            elif isinstance(event, TokenSampled) and event.seq_id in self._hears:
                seq_id, hears = event.seq_id, self._hears[event.seq_id]
                if seq_id in self._computing:
                    self._computing.discard(seq_id)
                    self._out.append(hears.first)
                elif seq_id in fresh:
                    self.scheduler.fresh.discard(seq_id)
                    self._out.append(hears.second)
                else:
                    gaps += 1
                if event.finish_reason is not None:
                    self._ended(seq_id)
        if gaps:
            self._gaps.add(took, gaps)

    def _leap(self, run: _Run, steps: int, *, running: bool) -> None:
        """So many of the run's steps are over."""
        prices, scheduler, sequences = run.prices, self.scheduler, run.sequences
        growth = prices.context_token * sequences
        first = prices.decodes(sequences, run.context)
        took = prices.steps(steps, sequences, run.context)
        last = [(first + growth * step) / PS for step in scheduler.remembered(steps)]
        if run.fresh:  # whoever waited for these counts that gap
            self._gaps.add(first, sequences - run.fresh)
            self._gaps.add(first + growth, sequences, growth, steps - 1)
            run.fresh = 0
        else:
            self._gaps.add(first, sequences, growth, steps)
        self.busy += took
        self._last_step = first + growth * (steps - 1)
        for seq_id in scheduler.leap(steps, last, took / PS, running=running):
            self._ended(seq_id)
        run.began += took
        run.steps -= steps
        run.context += steps * sequences

    def _catch_up(self) -> None:
        """Take in the steps of a run that are over; the one that is running stays."""
        if (over := self._over()) and (run := self._run) is not None:
            self._leap(run, over, running=True)

    def _over(self) -> int:
        """Steps of a run that are over and not taken in."""
        run = self._run
        if run is None or run.plan is not None or run.steps < 2:
            return 0
        passed = self._clock.now - run.began
        return run.prices.within(passed, run.sequences, run.context, run.steps - 1)

    def _cut(self) -> None:
        """Something changes: the running step is the last one of its run."""
        run = self._run
        if run is not None and run.steps > 1:
            run.steps = self._over() + 1
            run.ends = run.began + run.prices.steps(run.steps, run.sequences, run.context)
            self._clock.at(run.ends, lambda: self._end(run))

    # -- news ------------------------------------------------------------------------------

    def _second(self, fresh: Collection[int]) -> None:
        """Their first decode step is over."""
        self._changed()
        for seq_id in fresh:
            if seq_id in self._hears:
                self._hears[seq_id].second()

    def _ended(self, seq_id: int) -> None:
        """A sequence had its last token. Who keeps its KV for a hand-off still has to cancel."""
        hears = self._hears[seq_id]
        if seq_id not in self.scheduler:
            del self._hears[seq_id]
        self._out.append(hears.ended)

    def _tell(self) -> None:
        """Say what has happened, now that the books are as they will be."""
        out, self._out = self._out, []
        for tell in out:
            tell()


def _taken(blocks: BlockCounts, count: int) -> BlockCounts:
    """With so many more owned: free ones go first, then cached ones."""
    free = min(count, blocks.free)
    return BlockCounts(
        blocks.free - free,
        blocks.cached - (count - free),
        blocks.owned + count,
        blocks.quarantined,
    )
