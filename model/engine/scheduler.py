"""The scheduler: one policy for prefill chunks and decode steps under one token budget.

There is one kind of work. A sequence has ``length`` tokens of which ``computed`` have KV; a
slice is the next few of the missing ones, and it samples when it reaches the last. A decode
step is the case of one missing token (the unified view of vLLM's V1 scheduler). Decodes are
planned first, so they never wait for a prompt; prefill chunks share what is left of the budget
(see ``ComputeQueue``).

Pure bookkeeping: no thread, no lock, no torch. ``Engine`` serialises all calls; ``plan`` and
``commit`` alternate, and the other commands may come between the two, while the step runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from baton.errors import BatonError, InternalError, Preempted, WorkerFull
from baton.generation import FinishReason
from baton.identity import Role
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.compute_queue import ComputeQueue
from model.engine.costs import StepCosts
from model.engine.events import (
    ChunkComputed,
    Event,
    PrefixShared,
    SequenceFailed,
    SequencePreempted,
    TokenSampled,
)
from model.engine.fork import Stems, first_tokens
from model.engine.intake import Intake
from model.engine.memory import Memory
from model.engine.order import arrival
from model.engine.plan import Slice, StepPlan, StepResult
from model.engine.preemption import make_room
from model.engine.sequence import Hold, Phase, Reservation, Sequence, SequenceRequest
from model.engine.settings import SchedulerSettings
from model.engine.totals import Totals


class Scheduler:
    """Decides what each step computes and who has which blocks.

    Commands on a sequence that has ended do nothing: the caller ended it, or the event that
    says so is on its way. Events gather in ``take_events``.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        pool: BlockPool,
        prefix: PrefixCache,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.costs = StepCosts()
        self._memory = Memory(pool, prefix, settings.block_size)
        self.intake = Intake(settings, pool.num_blocks)
        self._clock = clock
        self._live: dict[int, Sequence] = {}
        self._queue = ComputeQueue(settings, self.costs, clock)
        self._decoding: dict[int, Sequence] = {}
        self._stems = Stems()
        self._running: StepPlan | None = None
        self.step_load = (0, 0)  #: prompt tokens and decodes of the step planned last
        self._events: list[Event] = []
        self._next_seq_id = 1
        self.steps = 0
        self.compute_s = 0.0  #: of all steps
        self.computed_tokens = 0  #: likewise
        self.totals = Totals()

    # -- commands --------------------------------------------------------------------------

    def add(self, request: SequenceRequest) -> Reservation:
        """Reserve every block for prompt and generated ids at once: pin those in the prefix cache
        and those that others are computing, take fresh ones for the rest.

        Raises WorkerFull when it does not fit now, and what ``Intake.admit`` raises.
        """
        seq, seq_id = None, self._next_seq_id
        if self.intake.admit(request, self._live.values()):
            rank = (arrival(self.computed_tokens, request.priority), seq_id)
            seq = self._memory.reserve(request, seq_id, rank, self._clock())
        if seq is None:
            raise self._full(len(request.prompt_ids) + len(request.generated_ids))
        self._next_seq_id += 1
        self.totals.cache_hits += seq.cached
        if request.more_choices:
            self._next_seq_id = self._stems.name(seq, self._next_seq_id)
        self._live[seq.seq_id] = seq
        queued = self.queued_tokens
        if not request.receive:
            self._enqueue(seq)
        blocks, choices = tuple(seq.blocks), tuple(seq.choices)
        return Reservation(seq.seq_id, seq.cached, seq.length, blocks, queued, choices)

    def activate(self, seq_id: int, first_token: int) -> FinishReason | None:
        """All KV of a reserved sequence is in its blocks and verified; ``first_token`` was
        sampled elsewhere. It joins the batch, or ends if that token finishes it."""
        seq = self._received(seq_id)
        if seq is None:
            return None
        finish = seq.append(first_token)
        if finish is not None:
            self._end(seq)
        else:
            self._join_batch(seq)
        return finish

    def fork(self, seq_id: int, first_tokens: Mapping[int, int]) -> None:
        """As ``activate`` for several choices, each with its first token by its own seq_id; one
        without, or cancelled, has ended."""
        stem = self._received(seq_id)
        if stem is not None:
            self._part(stem, {i: first_tokens[i] for i in stem.choices if i in first_tokens})

    def _received(self, seq_id: int) -> Sequence | None:
        seq = self._live.get(seq_id)
        if seq is None:
            return None
        if seq.phase is not Phase.AWAITING_KV:
            raise RuntimeError(f"sequence {seq_id} does not wait for KV: {seq.phase.name}")
        seq.computed = seq.length
        self._memory.publish(seq, adopt=True)
        return seq

    def compute_here(self, seq_id: int) -> None:
        """KV of a reserved sequence will not come: prefill here what is not cached.

        Raises WorkerFull, and nothing changes, when blocks that must be replaced for that
        (``Memory.prepare_to_compute``) cannot be.
        """
        seq = self._live.get(seq_id)
        if seq is None or seq.phase is not Phase.AWAITING_KV:
            return
        if not self._memory.prepare_to_compute(seq):
            raise self._full(seq.length)
        seq.created_s = self._clock()
        self._enqueue(seq)

    def cancel(self, seq_id: int) -> None:
        """End a sequence without an event; idempotent."""
        seq = self._live.get(seq_id)
        if seq is not None:
            self._end(seq)
        elif (stem := self._stems.cancel(seq_id)) is not None:
            self._end(stem)

    def hold(self, seq_id: int) -> Hold:
        """Hold the blocks of a sequence.

        Raises Preempted when the sequence has ended: its blocks may be someone else's.
        """
        seq = self._live.get(seq_id)
        if seq is None:
            raise Preempted(f"sequence {seq_id} has ended and its blocks are gone")
        return self._memory.hold(seq)

    def unhold(self, hold: Hold) -> None:
        """End a hold; idempotent."""
        self._memory.unhold(hold)

    def lag(self, seq_id: int, behind: bool) -> None:
        """The reader of a sequence's KV is behind, or has caught up: see ``ComputeQueue``."""
        seq = self._live.get(seq_id)
        if seq is not None and seq.phase is Phase.PREFILLING:
            self._queue.lag(seq, behind)

    def end_all(self, error: BatonError, roles: Collection[Role] = tuple(Role)) -> int:
        """End every sequence of ``roles`` that is not KEPT with ``error``; how many there were. A
        kept one needs no more compute, and its hand-off may finish."""
        live = self._live.values()
        ended = [s for s in live if s.request.role in roles and s.phase is not Phase.KEPT]
        for seq in ended:
            self._end(seq, SequenceFailed(seq.seq_id, error))
        return len(ended)

    def take_events(self) -> list[Event]:
        """Events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    # -- a step ----------------------------------------------------------------------------

    def plan(self) -> StepPlan:
        """Decide the next step; it has no slices when nothing can be computed now.

        May preempt. A sequence that needs a block which only a hold keeps from it sits out.
        """
        assert self._running is None, "the last step has not been committed"
        make_room(self._memory, self._decoding.values(), self._live.values(), self._preempt)
        slices = [  # next_slice(1), at half its cost
            Slice(s.seq_id, s.generated_ids[-1:], s.computed, s.blocks, s.sample)
            for s in self._decoding.values()
            if s.computed < s.room
        ]
        self._catch_up()
        chunks = self._queue.chunks(len(slices))
        self.step_load = (sum(len(chunk.token_ids) for chunk in chunks), len(slices))
        slices += chunks
        plan = StepPlan(self.steps + 1, tuple(slices), self._memory.take_copies())
        if slices:
            self._running = plan
        return plan

    def commit(self, result: StepResult) -> None:
        """Take in what the running step computed. Sequences that ended meanwhile are skipped."""
        plan = self._finish_step()
        self.compute_s += result.compute_s
        self.costs.observe(*self.step_load, result.compute_s)
        self.computed_tokens += sum(self.step_load)
        live, tokens, errors, emit = self._live, result.tokens, result.errors, self._events.append
        size, prefilling = self.settings.block_size, Phase.PREFILLING
        told = result.logprobs.get
        self.totals.generated += len(tokens)
        for part in plan.slices:
            seq_id = part.seq_id
            seq = live.get(seq_id)
            if seq is None:
                continue
            token, error = tokens.get(seq_id), errors.get(seq_id)
            if token is None and part.sample is not None and error is None:
                error = InternalError(f"step {plan.step} sampled nothing for {seq_id}")
            if error is not None:
                self._end(seq, SequenceFailed(seq_id, error))
                continue
            first = seq.phase is prefilling
            if first:
                self._queue.computed(seq, len(part.token_ids))
                self.totals.prompt += len(part.token_ids)
                self._memory.advance(seq)
                seq.prefill_s += result.compute_s
                seq.steps += 1
            else:
                seq.computed += 1
                if seq.computed % size == 0:
                    self._memory.publish_soon(seq)
            if token is None or part.sample is None:
                if part.draws:
                    self._drawn(seq, result)
                elif seq.request.tell:
                    emit(ChunkComputed(seq_id, seq.computed))
                continue
            finish = seq.append(token)
            timings = seq.timings(self.compute_s, self.steps) if first or finish else None
            index = len(seq.generated_ids) - 1
            emit(TokenSampled(seq_id, token, index, finish, timings, told(seq_id)))
            if first:
                self._leave_queue(seq, finish)
            elif finish is not None:
                self._end(seq)
        self._memory.publish_some(len(self._decoding))

    def fail(self, error: BatonError) -> None:
        """The running step came to nothing: every sequence in it ends with ``error``."""
        for part in self._finish_step().slices:
            seq = self._live.get(part.seq_id)
            if seq is not None:
                self._end(seq, SequenceFailed(seq.seq_id, error))

    def _finish_step(self) -> StepPlan:
        plan = self._running
        assert plan is not None, "no step is running"
        self._running = None
        self.steps += 1
        self._memory.step_ended()
        return plan

    def _leave_queue(self, seq: Sequence, finish: FinishReason | None) -> None:
        """The prompt is computed: hand it off, decode it, or end it."""
        self._queue.remove(seq)
        seq.phase = Phase.KEPT
        if seq.request.keep:
            return
        if finish is None:
            self._join_batch(seq)
        else:
            self._end(seq)

    # -- several choices (see fork.py) -----------------------------------------------------

    def _drawn(self, stem: Sequence, result: StepResult) -> None:
        """The prompt is computed, and the first token of each choice drawn."""
        self._queue.remove(stem)
        stem.phase = Phase.KEPT
        timings = stem.timings(self.compute_s, self.steps)
        drawn, events = first_tokens(stem, result, timings)
        self._events += events
        if stem.request.keep:
            self._stems.forget(stem)
        else:
            self._part(stem, drawn)

    def _part(self, stem: Sequence, drawn: Mapping[int, int]) -> None:
        """Every choice goes on by itself from its first token, or ends with it."""
        children = self._memory.fork(stem, drawn)
        self._stems.forget(stem)
        del self._live[stem.seq_id]
        stem.phase = Phase.ENDED
        for child in children:
            self._live[child.seq_id] = child
            if child.append(drawn[child.seq_id]) is None:
                self._join_batch(child)
            else:
                self._end(child)

    # -- phases ----------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Waiting sequences take note of what others have computed of their promised blocks."""
        for seq in self._queue:
            if seq.computed < seq.promised and self._memory.catch_up(seq) and seq.request.export:
                whole = seq.computed // seq.block_size * seq.block_size
                self._events.append(PrefixShared(seq.seq_id, whole, self._clock()))

    def _enqueue(self, seq: Sequence) -> None:
        seq.phase = Phase.PREFILLING
        self._queue.add(seq)

    def _join_batch(self, seq: Sequence) -> None:
        seq.phase = Phase.DECODING
        seq.decode_base_s, seq.decode_base_step = self.compute_s, self.steps
        self._decoding[seq.seq_id] = seq

    def _end(self, seq: Sequence, event: Event | None = None) -> None:
        """Give up everything ``seq`` has."""
        del self._live[seq.seq_id]
        if seq.choices:
            self._stems.forget(seq)
        if seq.phase is Phase.DECODING:
            del self._decoding[seq.seq_id]
            self._memory.publish(seq)
        elif seq.phase is Phase.PREFILLING:
            self._queue.remove(seq, seq.tail)
        seq.phase = Phase.ENDED
        running = self._running.slices if self._running is not None else ()
        self._memory.give_up(seq, any(part.seq_id == seq.seq_id for part in running))
        if event is not None:
            self._events.append(event)

    # -- memory ----------------------------------------------------------------------------

    def _full(self, tokens: int) -> WorkerFull:
        free = self._memory.free_tokens
        return WorkerFull(f"{tokens} tokens need room, but only {free} tokens' blocks are free")

    def _preempt(self, seq: Sequence) -> None:
        self._end(seq, SequencePreempted(seq.seq_id))
        self.totals.preemptions += 1

    # -- the books -------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    def live_of(self, role: Role) -> int:
        """Those of one role."""
        return sum(seq.request.role is role for seq in self._live.values())

    @property
    def prefill_room(self) -> int | None:
        """Blocks that ``keep`` sequences may still take; None where they have no quota."""
        return self.intake.prefill_room(self._live.values())

    @property
    def running(self) -> int:
        """Sequences in the decode batch."""
        return len(self._decoding)

    @property
    def waiting(self) -> int:
        """Sequences that wait for compute or for KV."""
        awaiting = sum(s.phase is Phase.AWAITING_KV for s in self._live.values())
        return len(self._queue) + awaiting

    @property
    def queued_tokens(self) -> int:
        """Tokens to compute for all prompts in the compute queue; what several want counts once."""
        return self._queue.tail_tokens + self._memory.promised_tokens

    def check(self) -> list[str]:
        """Recompute every reference and compare it with the books; one line per violation."""
        wrong = self._memory.check(self._live.values(), self._running)
        for seq in self._live.values():
            wrong += seq.check()
        phases = Counter(s.phase for s in self._live.values())
        if (phases[Phase.PREFILLING], phases[Phase.DECODING]) != (
            len(self._queue),
            len(self._decoding),
        ):
            wrong.append("the queues do not match the phases of the live sequences")
        return wrong + self._queue.check()
