"""The real scheduler, which can also take many decode steps at once.

Nothing changes from one decode step to the next until a prompt wants to be computed, a sequence
ends or memory runs short: such steps are a sum that has a formula (``prices.py``), and what they do
to the books is done once. Whatever else happens is planned by the scheduler as it is.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

from bench.simulate.counted import Counted
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.events import Event, SequencePreempted
from model.engine.memory import Memory
from model.engine.scheduler import Scheduler
from model.engine.sequence import Phase, Sequence
from model.engine.settings import SchedulerSettings

#: What every sampled token is.
TOKEN = 0
#: Steps after which the estimate of what one takes has forgotten all but a ten-thousandth of those
#: before.
_REMEMBERED = 32


class NoKeys(PrefixCache):
    """Of a worker that reuses nothing."""

    def keys(self, parent: bytes, tokens: Ids[int]) -> list[bytes]:
        return []


class Unshared(Memory):
    """Of a worker that reuses nothing: no block enters the prefix cache."""

    def publish(self, seq: Sequence, adopt: bool = False) -> None:
        return

    def publish_soon(self, seq: Sequence) -> None:
        return


class Leaping(Scheduler):
    """``plan`` and ``commit`` as ever; ``start`` and ``leap`` for decode steps alone."""

    def __init__(
        self, settings: SchedulerSettings, blocks: int, layout: str, *, caching: bool
    ) -> None:
        self.pool = BlockPool(blocks) if caching else Counted(blocks)
        kind = PrefixCache if caching else NoKeys
        prefix = kind(self.pool, settings.block_size, layout)
        super().__init__(settings, self.pool, prefix, lambda: 0.0)
        if not caching:
            self._memory = Unshared(self.pool, prefix, settings.block_size)
        self._caching = caching
        self._batch: list[Sequence] = []
        self.fresh = set[int]()  #: who has joined the batch and had no decode step yet
        self.preempted: dict[int, int] = {}  #: seq_id -> tokens it had generated

    def start(self) -> tuple[int, int, int]:
        """Begin decode steps: how many may pass until something happens, with how many sequences,
        and how many tokens they read back in the first one. (0, 0, 0), and nothing is begun, where
        the next step must be planned."""
        batch = list(self._decoding.values())
        if not batch or len(self._queue) or self._events or self._memory.sitting_out:
            return 0, 0, 0
        steps = min(s.request.spec.max_tokens - len(s.generated_ids) for s in batch)
        # At worst every sequence takes a block in the first step, and then after each full one.
        rounds = self.pool.available // len(batch)
        steps = min(steps, (rounds - 1) * self.settings.block_size)
        if steps < 1:
            return 0, 0, 0
        self._batch = batch
        self._reserve()
        return steps, len(batch), sum(s.computed + 1 for s in batch)

    def leap(self, steps: int, last: Ids[float], took: float, *, running: bool) -> list[int]:
        """So many of the steps are over; they ``took`` so many seconds, the ``last`` ones (see
        ``remembered``) these. With ``running`` the next one has begun. Returns who has ended."""
        size, tokens, ended = self.settings.block_size, [TOKEN] * steps, list[int]()
        decoding, caching = Phase.DECODING, self._caching
        self.steps += steps
        self.computed_tokens += steps * len(self._batch)
        self.totals.generated += steps * len(self._batch)
        self.compute_s += took
        for seconds in last:
            self.costs.observe(0, len(self._batch), seconds)
        for seq in self._batch:
            if seq.phase is not decoding:
                continue
            generated = seq.generated_ids
            generated += tokens
            seq.computed = computed = seq.computed + steps
            if computed > seq.room:
                self._take(seq, -(-(computed - seq.room) // size))
            if caching:
                self._memory.publish(seq)
            if len(generated) == seq.request.spec.max_tokens:
                self._end(seq)
                ended.append(seq.seq_id)
            elif running and computed == seq.room:  # a block for the step that has begun
                self._take(seq, 1)
        return ended

    def roomy(self, tokens: int, steps: int) -> bool:
        """Whether so many tokens can be reserved while so many steps run, and these still find
        every block that they may take."""
        if self._caching:
            return False
        size = self.settings.block_size
        left = self.pool.available - -(-tokens // size)
        return left >= len(self._batch) * (steps // size + 2)

    def take_fresh(self) -> set[int]:
        """Who has joined the batch and now has its first decode step."""
        fresh, self.fresh = self.fresh, set[int]()
        return fresh

    def ahead(self, steps: int) -> int:
        """Blocks that ``leap`` takes for so many of the steps, and for the one that runs then."""
        over = steps + 1
        return sum(
            -(-(seq.computed + over - seq.room) // self.settings.block_size)
            for seq in self._batch
            if seq.computed + over > seq.room and seq.phase is Phase.DECODING
        )

    def __contains__(self, seq_id: int) -> bool:
        """Whether a sequence is live, or kept."""
        return seq_id in self._live

    @property
    def idle(self) -> bool:
        """Whether there is nothing to plan."""
        return not (self._decoding or len(self._queue) or self._events)

    @property
    def planned_decodes(self) -> int:
        """Slices of the last plan that are decode steps; they come first."""
        return self.step_load[1]

    @staticmethod
    def remembered(steps: int) -> range:
        """Of so many steps, those that ``leap`` has to hear of."""
        return range(max(0, steps - _REMEMBERED), steps)

    def _reserve(self) -> None:
        """A block for each that begins one in the running step."""
        for seq in self._batch:
            if seq.phase is Phase.DECODING and seq.computed >= seq.room:
                self._take(seq, 1)

    def _take(self, seq: Sequence, count: int) -> None:
        blocks = self.pool.allocate(count)
        assert blocks is not None, "start() left room for all"
        seq.blocks.extend(blocks)
        seq.room += count * self.settings.block_size

    def _join_batch(self, seq: Sequence) -> None:
        super()._join_batch(seq)
        self.fresh.add(seq.seq_id)

    def _end(self, seq: Sequence, event: Event | None = None) -> None:
        super()._end(seq, event)
        self.fresh.discard(seq.seq_id)
        if isinstance(event, SequencePreempted):
            self.preempted[seq.seq_id] = len(seq.generated_ids)
