"""The engine: the scheduler's books behind one lock, and one thread that owns the device.

    event loop                          engine thread
    ----------                          -------------
    add, activate, cancel, hold, ...    lock: plan
      lock, microseconds, unlock        unlock; runner.run(plan, on_layer)   LayerReady ->
                                        lock: commit
                                        unlock; emit                         TokenSampled, ... ->

The lock is never held while the runner computes or while events are emitted, so a command
waits for another's bookkeeping at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from baton.errors import BatonError, InternalError
from baton.generation import FinishReason
from baton.identity import Role
from model.cache.blocks import BlockCounts, BlockPool
from model.cache.journal import Changes
from model.cache.prefix import PrefixCache
from model.engine.costs import Costs
from model.engine.events import Event, LayerReady
from model.engine.masks import MasksAhead
from model.engine.plan import StepPlan, StepResult
from model.engine.runner import Runner
from model.engine.scheduler import Scheduler
from model.engine.sequence import Hold, Reservation, SequenceRequest
from model.engine.settings import SchedulerSettings
from model.engine.totals import Totals

#: Called on the engine thread, without the lock, with the events of a step (or of one layer).
Emit = Callable[[Sequence[Event]], None]

#: Called on the engine thread, without the lock, after each step that did not fail: its seconds,
#: prompt tokens and decodes.
OnStep = Callable[[float, int, int], None]

#: Steps that may fail in a row before ``Load.failed`` says that this worker is of no use.
FAILURES_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine has to do, and whether it gets on with it."""

    queued_tokens: int  #: tokens in the compute queue, less those cached or computed
    running: int  #: sequences in the decode batch
    waiting: int  #: sequences that wait for compute or for KV
    blocks: BlockCounts
    steps: int  #: since start: with work to do and no advance, the engine is stuck
    last_step_s: float
    idle: bool  #: nothing to compute now
    draining: bool
    costs: Costs  #: measured
    failed: bool  #: several steps failed in a row, or the engine itself is broken
    prefill_room: int | None  #: blocks that prompts to be handed over may take; None: any
    totals: Totals
    failed_steps: int  #: since start


class Engine:
    """Runs sequences on one runner. Every public method is thread-safe.

    Start the thread with ``start``, or call ``step`` yourself (tests, simulators): never both.
    Commands on a sequence that has ended do nothing (``hold`` raises): whoever calls ended it
    itself, or the event that says so is on its way.

    The runner is the caller's: build it before, close it after ``stop``.
    """

    def __init__(
        self,
        runner: Runner,
        settings: SchedulerSettings,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        on_step: OnStep = lambda seconds, prompt_tokens, decodes: None,
        masks: MasksAhead | None = None,
    ) -> None:
        """``masks``: none makes them in series with the step; it is closed with the engine.

        Raises ValueError when ``settings.block_size`` is not the runner's.
        """
        if settings.block_size != runner.compatibility.block_size:
            raise ValueError(
                f"block_size is {settings.block_size}, "
                f"but the runner's is {runner.compatibility.block_size}"
            )
        self.runner = runner
        self.settings = settings
        self._emit = emit
        self._on_step = on_step
        self._masks = masks
        self._clock = clock
        self._pool = BlockPool(runner.num_blocks)
        prefix = PrefixCache(self._pool, settings.block_size, runner.compatibility.layout)
        self._scheduler = Scheduler(settings, self._pool, prefix, clock)
        self._lock = threading.Condition(threading.Lock())
        self._woken = False  # a command changed something since the thread last looked
        self._stopping = False
        self._broken = False
        self._failures = 0  # steps failed in a row
        self._failed_steps = 0
        self._last_step_s = 0.0
        self._thread: threading.Thread | None = None

    # -- commands: any thread, microseconds ------------------------------------------------

    def add(self, request: SequenceRequest) -> Reservation:
        """Reserve every block for the request's prompt and generated ids, or raise.

        KV that is to be computed here enters the compute queue at once; KV to be received
        waits for ``activate`` (or ``compute_here``, or ``cancel``).

        Raises ContextLengthExceeded (never fits), WorkerFull (not now), Draining.
        """
        with self._lock:
            reservation = self._scheduler.add(request)
            self._wake()
            return reservation

    def activate(self, seq_id: int, first_token: int) -> FinishReason | None:
        """All KV is in the reserved blocks, verified. ``first_token`` was sampled by the
        prefill worker and forwarded by the caller: no event repeats it. The sequence joins
        the next step, unless that token finishes it: then it has ended, for the reason
        returned. Raises RuntimeError when the sequence does not wait for KV."""
        with self._lock:
            finish = self._scheduler.activate(seq_id, first_token)
            self._wake()
            return finish

    def fork(self, seq_id: int, first_tokens: Mapping[int, int]) -> None:
        """As ``activate`` for a sequence of several choices: ``first_tokens`` by the seq_id of
        each (Reservation.choices). Those without one have ended. From here on each is a sequence
        by itself."""
        with self._lock:
            self._scheduler.fork(seq_id, first_tokens)
            self._wake()

    def compute_here(self, seq_id: int) -> None:
        """KV will not come: prefill here what is not cached. Raises WorkerFull, and nothing
        changes, when blocks under a transfer cannot be replaced."""
        with self._lock:
            self._scheduler.compute_here(seq_id)
            self._wake()

    def cancel(self, seq_id: int) -> None:
        """End a sequence, or one of several choices, without an event; idempotent. The others go
        on. Blocks that the running step uses are
        quarantined until it ends, held ones until their hold does."""
        with self._lock:
            self._scheduler.cancel(seq_id)
            self._wake()

    def release(self, seq_id: int) -> None:
        """The hand-off of a ``keep`` sequence is over: give up its blocks; idempotent."""
        self.cancel(seq_id)

    def hold(self, seq_id: int) -> Hold:
        """A transfer reads or writes blocks of the sequence: they survive it as quarantined.
        Raises Preempted when it has ended."""
        with self._lock:
            return self._scheduler.hold(seq_id)

    def unhold(self, hold: Hold) -> None:
        """The bytes have stopped moving, or their connection is gone; idempotent."""
        with self._lock:
            self._scheduler.unhold(hold)
            self._wake()

    def lag(self, seq_id: int, behind: bool) -> None:
        """The reader of a ``keep`` sequence's KV is behind, or has caught up: from the next step
        on its prompt goes after the others, or in its turn again. What is computed, and how
        much, does not depend on it, so nobody has to be woken."""
        with self._lock:
            self._scheduler.lag(seq_id, behind)

    def drain(self, error: BatonError | None = None) -> int:
        """Refuse new sequences. With ``error``, end the live ones with it, SequenceFailed for
        each, so that the one recovery path moves them; sequences that only wait to be handed
        off are left to finish. Returns how many ended."""
        with self._lock:
            self._scheduler.intake.draining = True
            ended = 0 if error is None else self._scheduler.end_all(error)
            self._wake()
            return ended

    def resume(self) -> None:
        """Take new sequences again after ``drain``."""
        with self._lock:
            self._scheduler.intake.draining = self._broken

    def take_roles(self, roles: Collection[Role]) -> None:
        """Refuse new sequences of other roles from now on; live ones stay."""
        with self._lock:
            self._scheduler.intake.take_roles(roles)

    def hand_back(self, role: Role, error: BatonError) -> int:
        """End the live sequences of one role as ``drain`` does; returns how many."""
        with self._lock:
            ended = self._scheduler.end_all(error, (role,))
            self._wake()
            return ended

    # -- observation -----------------------------------------------------------------------

    def live(self, role: Role) -> int:
        """Sequences of one role that have not ended."""
        with self._lock:
            return self._scheduler.live_of(role)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may come, in the roles taken."""
        with self._lock:
            return self._scheduler.intake.longest

    def load(self) -> Load:
        with self._lock:
            scheduler = self._scheduler
            return Load(
                queued_tokens=scheduler.queued_tokens,
                running=scheduler.running,
                waiting=scheduler.waiting,
                blocks=self._pool.counts(),
                steps=scheduler.steps,
                last_step_s=self._last_step_s,
                idle=scheduler.queued_tokens == 0 and scheduler.running == 0,
                draining=scheduler.intake.draining,
                costs=scheduler.costs.estimate,
                failed=self._broken or self._failures >= FAILURES_IN_A_ROW,
                prefill_room=scheduler.prefill_room,
                totals=replace(scheduler.totals),
                failed_steps=self._failed_steps,
            )

    def cache_changes(self, since: int | None) -> Changes | None:
        """What entered and left the prefix cache after change number ``since``, or all there is
        where that is None or too long ago; None when nothing did. O(changes), at most O(pool)."""
        with self._lock:
            return None if since == self._pool.changed else self._pool.changes(since)

    def check_integrity(self, idle: bool = False) -> list[str]:
        """Recompute every block's references from live sequences, holds and the running step,
        and compare them with the counts. One line per violation. ``idle`` also demands that
        nothing is live, owned or quarantined. O(pool): not for every step."""
        with self._lock:
            wrong = self._scheduler.check()
            counts = self._pool.counts()
            if idle and (counts.owned or counts.quarantined or self._scheduler.live):
                wrong.append(
                    f"idle, but {counts.owned} blocks are owned, {counts.quarantined} "
                    f"quarantined and {self._scheduler.live} sequences live"
                )
            return wrong

    # -- steps: the engine thread ----------------------------------------------------------

    def start(self) -> None:
        """Start the engine thread. Raises RuntimeError when it was started before."""
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Let the running step end, then end the thread; live sequences stay as they are.

        Idempotent. Raises TimeoutError when the step does not end within ``timeout_s``.
        """
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TimeoutError(f"the engine's step did not end within {timeout_s} s")
        if self._masks is not None:
            self._masks.close()

    def step(self) -> bool:
        """Plan, compute, commit and emit once. False when there was nothing to do."""
        with self._lock:
            plan = self._scheduler.plan()
            events = self._scheduler.take_events()
        if events:
            self._emit(events)  # before the step: the preempted move on while it computes
        if not plan.slices:
            return bool(events)
        started = self._clock()
        outcome = self._compute(plan)
        with self._lock:
            if isinstance(outcome, StepResult):
                self._failures = 0
                self._scheduler.commit(outcome)
            else:
                self._failures += 1
                self._failed_steps += 1
                self._scheduler.fail(outcome)
            self._last_step_s = self._clock() - started
            events = self._scheduler.take_events()
        if events:
            self._emit(events)
        if isinstance(outcome, StepResult):
            self._on_step(self._last_step_s, *self._scheduler.step_load)
        return True

    def _compute(self, plan: StepPlan) -> StepResult | BatonError:
        """Run the plan without the lock; a failure of the whole step becomes a value."""
        exports = [(part.seq_id, part.end) for part in plan.slices if part.export]

        def on_layer(layer: int) -> None:
            if exports:
                at = self._clock()
                self._emit([LayerReady(seq_id, layer, end, at) for seq_id, end in exports])

        try:
            with nullcontext() if self._masks is None else self._masks.beside(plan):
                return self.runner.run(plan, on_layer)
        except BatonError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a device raises ends only this step
            failure = InternalError(f"engine step {plan.step} failed: {error!r}")
            failure.__cause__ = error
            return failure

    def _loop(self) -> None:
        try:
            while not self._stopping:
                if not self.step():
                    self._sleep()
        except Exception as error:  # noqa: BLE001 - a silent thread would hang every stream
            self._break(error)

    def _sleep(self) -> None:
        """Wait until a command has changed something since the last call."""
        with self._lock:
            self._lock.wait_for(lambda: self._woken or self._stopping)
            self._woken = False

    def _wake(self) -> None:
        """Tell the thread that there may be work. The caller has the lock."""
        self._woken = True
        self._lock.notify_all()

    def _break(self, error: Exception) -> None:
        """A defect in the engine itself: end every sequence, say so, and refuse the rest."""
        failure = InternalError(f"the engine is broken: {error!r}")
        failure.__cause__ = error
        with self._lock:
            self._broken = self._scheduler.intake.draining = True
            self._scheduler.end_all(failure)
            events = self._scheduler.take_events()
        self._emit(events)
