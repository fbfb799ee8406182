"""The memory part of scheduling: which sequence has which blocks, and who holds them.

Pure bookkeeping over the pool and the prefix cache, called by ``Scheduler`` alone, which decides
who lives; here is what a sequence's life and end mean for its blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Ids
from typing import NamedTuple

from model.cache.blocks import BlockPool
from model.cache.prefix import Chain, PrefixCache
from model.engine.fork import Forks
from model.engine.plan import Copy, StepPlan
from model.engine.sequence import Hold, Sequence


class Table(NamedTuple):
    """Blocks set aside for a sequence: those found in the prefix cache, then fresh ones."""

    blocks: list[int]
    cached: int  #: tokens found
    chain: Chain  #: over them
    spare: list[int]  #: beyond what the tokens take


class Memory:
    """The blocks of live sequences, and the holds on them."""

    def __init__(self, pool: BlockPool, prefix: PrefixCache, block_size: int) -> None:
        self._pool = pool
        self._prefix = prefix
        self._block_size = block_size
        self._holds: dict[int, Hold] = {}
        self._forks = Forks(pool)
        self._step_holds: list[list[int]] = []  # tables of sequences that ended in mid-step
        self._next_hold_id = 1
        #: Sequences of the batch that wait for a block out of quarantine; the next blocks are
        #: theirs: newcomers could otherwise take every block from under them for ever.
        self.sitting_out = 0

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def free_tokens(self) -> int:
        """What the blocks that could be handed out now have room for."""
        return self._pool.available * self._block_size

    @property
    def quarantined(self) -> int:
        """Blocks that come back when a transfer or the running step ends."""
        return self._pool.counts().quarantined

    @property
    def held(self) -> set[int]:
        """Sequences whose blocks a transfer reads or writes."""
        return {hold.seq_id for hold in self._holds.values()}

    # -- a sequence's blocks ---------------------------------------------------------------

    def reserve(self, tokens: Ids[int], salt: bytes, hit_limit: int, count: int) -> Table | None:
        """Pin the prefix hit of at most ``hit_limit`` tokens and take fresh blocks for the rest
        of ``tokens``, ``count`` blocks in all; all, or None and nothing changes."""
        hit, chain = self._prefix.match(tokens, salt, hit_limit)
        self._pool.share(hit)
        fresh = self._take(count - len(hit))
        if fresh is None:
            self._pool.release(hit)
            return None
        missing = -(-len(tokens) // self._block_size) - len(hit)
        blocks, spare = hit + fresh[:missing], fresh[missing:]
        return Table(blocks, len(hit) * self._block_size, chain, spare)

    def prepare_to_compute(self, seq: Sequence) -> bool:
        """Make every block writable that a sequence without KV from elsewhere must write.

        Blocks that a transfer may still write to are given up (quarantined) for fresh ones,
        and so is a shared block that the last token would have to be written to again.
        False, and nothing changes, when there are none.
        """
        size = self._block_size
        kept = min(seq.cached, (seq.length - 1) // size * size) // size
        if kept * size < seq.cached or seq.seq_id in self.held:
            fresh = self._take(len(seq.blocks) - kept)
            if fresh is None:
                return False
            self._pool.release(seq.blocks[kept:])
            seq.blocks = seq.blocks[:kept] + fresh
            seq.cached = seq.computed = kept * size
            tokens, salt = seq.tokens(0, seq.cached), seq.request.salt
            seq.chain = self._prefix.match(tokens, salt, seq.cached).chain
        return True

    def grow(self, seq: Sequence) -> bool:
        """Make room for the next token of a decoding sequence; False when there is none."""
        return self._forks.grow(seq)

    def fork(self, stem: Sequence, tokens: Mapping[int, int]) -> list[Sequence]:
        """A sequence for each choice in ``tokens``, in the place of ``stem``: see ``Forks``."""
        return self._forks.fork(stem, tokens)

    def take_copies(self) -> tuple[Copy, ...]:
        """What the next step copies before it writes."""
        return self._forks.take_copies()

    def publish(self, seq: Sequence) -> None:
        """Every full computed block of ``seq`` enters the prefix cache."""
        fresh = seq.tokens(seq.chain.blocks * seq.block_size, seq.computed)
        seq.chain = self._prefix.insert(seq.chain, fresh, seq.blocks)

    def give_up(self, seq: Sequence, in_step: bool) -> None:
        """Take every block from a sequence that has ended. If the running step uses them, they
        are quarantined until ``step_ended``."""
        # A new list, not clear(): the running step reads the old one.
        blocks, seq.blocks = seq.blocks, []
        if in_step:
            self._pool.hold(blocks)
            self._step_holds.append(blocks)
        self._pool.release(blocks)
        self._pool.release(seq.spare)
        seq.spare, seq.forked = [], False

    def step_ended(self) -> None:
        """No step uses any block now."""
        for table in self._step_holds:
            self._pool.unhold(table)
        self._step_holds.clear()
        self._forks.step_ended()

    def _take(self, count: int) -> list[int] | None:
        """Allocate, but nothing that a sequence sitting out is waiting for."""
        if count > self._pool.available - self.sitting_out:
            return None
        return self._pool.allocate(count)

    # -- holds -----------------------------------------------------------------------------

    def hold(self, seq: Sequence, first_block: int) -> Hold:
        """Hold the blocks of a live sequence from index ``first_block`` of its table on."""
        hold = Hold(self._next_hold_id, seq.seq_id, tuple(seq.blocks[first_block:]))
        self._next_hold_id += 1
        self._pool.hold(hold.blocks)
        self._holds[hold.hold_id] = hold
        return hold

    def unhold(self, hold: Hold) -> None:
        """End a hold; idempotent."""
        if self._holds.pop(hold.hold_id, None) is not None:
            self._pool.unhold(hold.blocks)

    # -- the books -------------------------------------------------------------------------

    def check(self, live: Collection[Sequence], running: StepPlan | None) -> list[str]:
        """Recompute every reference and compare it with the pool; one line per violation."""
        owners = Counter(b for s in live for b in (*s.blocks, *s.spare))
        sharers = self._forks.sharers(live)
        holds = Counter(b for h in self._holds.values() for b in h.blocks)
        holds.update(b for table in self._step_holds for b in table)
        holds.update(self._forks.sources)
        wrong = self._pool.check(owners, holds)
        for seq in live:
            for block in seq.blocks[seq.computed // seq.block_size :]:
                alone = sharers[block] if seq.forked else 1
                if self._pool.key(block) is not None or self._pool.owners(block) != alone:
                    wrong.append(f"block {block}, to be written by {seq.seq_id}, is shared")
        for part in running.slices if running is not None else ():
            if any(not owners[b] and not holds[b] for b in part.block_table):
                wrong.append(f"the running step uses blocks that {part.seq_id} no longer has")
        return wrong
