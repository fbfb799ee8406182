"""The memory part of scheduling: which sequence has which blocks, and who holds them.

**Blocks that are being computed are shared, too.** A sequence that computes its prompt promises,
block by block, what its table will hold. Whoever wants the same tokens with the same salt becomes
an owner of these very blocks at once, so 32 requests over one prefix need its memory once. There
is no leader: every owner has the blocks pinned, and in each step the first of them in the compute
queue computes on from where the last one stopped, while the others, whose next block that is, are
left out (``ComputeQueue``). So each token is computed once, by whoever goes first; nobody inherits
a priority or a lag; and if a sequence ends early the next of the owners goes on from the last
token that a step has finished. Nobody waits for another, only for its turn, and whoever is first
in the queue always has it.

Received KV is not shared before all of it is there. A hand-off writes to blocks that are its
sequence's alone, and one that breaks must not strand others: to wait for another's transfer while
holding blocks is what the design forbids. The prompt is still computed once, on the prefill worker;
what a second hand-off costs is its bytes. When it is complete, blocks that others have published
meanwhile take the place of its own.

Pure bookkeeping over the pool and the prefix cache, called by ``Scheduler`` alone, which decides
who lives; here is what a sequence's life and end mean for its blocks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Ids
from typing import NamedTuple

from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.fork import Forks
from model.engine.plan import Copy, StepPlan
from model.engine.sequence import Hold, Phase, Sequence, SequenceRequest


class Table(NamedTuple):
    """Blocks set aside for a sequence: cached ones, promised ones, others."""

    blocks: list[int]
    keys: list[bytes]  #: of every full block of the tokens known
    cached: int  #: tokens whose KV is in place
    promised: int  #: tokens whose KV is in place, or promised to whoever wants it


class Memory:
    """The blocks of live sequences, and the holds on them."""

    def __init__(self, pool: BlockPool, prefix: PrefixCache, block_size: int) -> None:
        self._pool = pool
        self._prefix = prefix
        self._block_size = block_size
        self._holds: dict[int, Hold] = {}
        self._forks = Forks(pool)
        self._step_holds: list[list[int]] = []  # tables of sequences that ended in mid-step
        self._to_publish: deque[Sequence] = deque()  #: of the batch, each with a full block
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
    def promised_tokens(self) -> int:
        """Tokens of promised blocks that nobody has computed yet; each block counts once."""
        promises = self._pool.promises
        return len(promises) * self._block_size - promises.filled

    @property
    def quarantined(self) -> int:
        """Blocks that come back when a transfer or the running step ends."""
        return self._pool.counts().quarantined

    @property
    def held(self) -> set[int]:
        """Sequences whose blocks a transfer reads or writes."""
        return {hold.seq_id for hold in self._holds.values()}

    # -- a sequence's blocks ---------------------------------------------------------------

    def reserve(
        self, request: SequenceRequest, seq_id: int, rank: tuple[int, int], created_s: float
    ) -> Sequence | None:
        """A sequence that has every block it begins with (``SequenceRequest.blocks``): those that
        are cached or promised are pinned, the rest is fresh; or None and nothing changes."""
        size = self._block_size
        tokens = (*request.prompt_ids, *request.generated_ids)
        table = self._table(request, tokens)
        if table is None:
            return None
        border = -(-len(tokens) // size)
        return Sequence(
            seq_id=seq_id,
            request=request,
            block_size=size,
            blocks=table.blocks[:border],
            cached=table.cached,
            computed=table.cached,
            keys=table.keys,
            published=table.cached // size,
            promised=table.promised,
            phase=Phase.AWAITING_KV,
            created_s=created_s,
            rank=rank,
            spare=table.blocks[border:],  # for the choices that go on from it
        )

    def _table(self, request: SequenceRequest, tokens: Ids[int]) -> Table | None:
        keys = self._prefix.keys(self._prefix.root(request.salt), tokens)
        count = request.blocks(self._block_size)
        if not request.receive:
            return self._to_compute(keys, len(tokens), count, [])
        hit = self._prefix.match(keys)
        fresh = self._beside(hit, count - len(hit))
        if fresh is None:
            return None
        cached = len(hit) * self._block_size
        return Table(hit + fresh, keys, cached, cached)

    def prepare_to_compute(self, seq: Sequence) -> bool:
        """Make the table of a sequence whose KV does not come from elsewhere one to compute in.

        Blocks that a transfer may still write to are given up (quarantined) for fresh ones,
        and so is a shared block that the last token would have to be written to again.
        False, and nothing changes, when there are none.
        """
        border = seq.cached // self._block_size
        cached, own = seq.blocks[:border], seq.blocks[border:]
        spare = [] if seq.seq_id in self.held else list(own)
        table = self._to_compute(seq.keys, seq.length, len(seq.blocks), spare)
        if table is None:
            return False
        taken = set(table.blocks)
        self._pool.release(cached + [block for block in own if block not in taken])
        seq.blocks = table.blocks
        seq.cached = seq.computed = table.cached
        seq.promised, seq.published = table.promised, table.cached // self._block_size
        return True

    def _to_compute(
        self, keys: list[bytes], length: int, count: int, spare: list[int]
    ) -> Table | None:
        """A table of ``count`` blocks for a sequence of ``length`` tokens that is computed here;
        ``spare`` ones, its own already, are used before fresh ones."""
        size, pool = self._block_size, self._pool
        # The last token must be computed by the sequence itself, to be sampled from.
        common = keys[: (length - 1) // size]
        hit = self._prefix.match(common)
        shared = hit + self._prefix.coming(common, len(hit))
        reused = spare[: count - len(shared)]
        fresh = self._beside(shared, count - len(shared) - len(reused))
        if fresh is None:
            return None
        blocks, promised = shared + reused + fresh, len(shared)
        while promised < len(common) and pool.promise(blocks[promised], common[promised]):
            promised += 1
        return Table(blocks, keys, len(hit) * size, promised * size)

    def _beside(self, shared: list[int], count: int) -> list[int] | None:
        """Pin ``shared`` and take ``count`` fresh blocks, but none that a sequence sitting out
        is waiting for; or None, and nothing changes."""
        self._pool.share(shared)
        fresh = None
        if count <= self._pool.available - self.sitting_out:
            fresh = self._pool.allocate(count)
        if fresh is None:
            self._pool.release(shared)
        return fresh

    def catch_up(self, seq: Sequence) -> bool:
        """Count as computed what other owners have computed of the promised blocks of ``seq``;
        whether there was any."""
        before, size, progress = seq.computed, self._block_size, self._pool.promises.progress
        while seq.computed < seq.promised:
            index = seq.computed // size
            filled = progress(seq.blocks[index])
            seq.computed = (index + 1) * size if filled is None else index * size + filled
            if filled is not None:
                break
        seq.shared += seq.computed - before
        seq.published = seq.computed // size
        return seq.computed > before

    def advance(self, seq: Sequence) -> None:
        """A step has computed tokens of a prompt."""
        self.publish(seq, adopt=not (seq.request.keep or seq.request.export))
        if seq.computed < seq.promised:
            index, tokens = divmod(seq.computed, self._block_size)
            self._pool.promises.fill(seq.blocks[index], tokens)

    def publish(self, seq: Sequence, adopt: bool = False) -> None:
        """Every full computed block of ``seq`` enters the prefix cache.

        Where another has the same contents it stays private, and so does all that builds on it,
        as its chain could not be told from the other's. With ``adopt`` the other takes its place
        instead. That is for sequences that no runner and no reader knows the blocks of: before
        they decode, and none that is handed over while it is computed.
        """
        pool, blocks, full = self._pool, seq.blocks, seq.computed // self._block_size
        self._hash(seq, full)
        for index in range(seq.published, full):
            if index and pool.key(blocks[index - 1]) is None:
                break
            key = seq.keys[index]
            if pool.publish(blocks[index], key) or not adopt:
                continue
            if (other := pool.find(key)) is not None:
                pool.share([other])
                pool.release([blocks[index]])
                blocks[index] = other
        seq.published = full

    def publish_soon(self, seq: Sequence) -> None:
        """A decoding sequence has filled a block; nobody waits for it to be published."""
        self._to_publish.append(seq)

    def publish_some(self, running: int) -> None:
        """Publish as many of those blocks as ``running`` sequences fill in a step on average:
        they may fill all in the same one. The rest follows, at the end of its sequence at the
        latest."""
        share = running // self._block_size + 1
        for _ in range(min(len(self._to_publish), share)):
            seq = self._to_publish.popleft()
            if seq.phase is Phase.DECODING:
                self.publish(seq)

    def _hash(self, seq: Sequence, full: int) -> None:
        """Make the keys of the first ``full`` blocks."""
        known, size = len(seq.keys), self._block_size
        if known < full:
            parent = seq.keys[-1] if known else self._prefix.root(seq.request.salt)
            seq.keys += self._prefix.keys(parent, seq.tokens(known * size, full * size))

    def grow(self, seqs: Ids[Sequence]) -> bool:
        """Make room for the next token of each; False, and nothing changes, when there are too
        few blocks, or when one of several is a choice that may have to copy: one by one then."""
        if any(seq.forked or seq.spare for seq in seqs):
            return len(seqs) == 1 and self._forks.grow(seqs[0])
        blocks = self._pool.allocate(len(seqs))
        if blocks is None:
            return False
        for seq, block in zip(seqs, blocks, strict=True):
            seq.blocks.append(block)
            seq.room += self._block_size
        return True

    def fork(self, stem: Sequence, tokens: Mapping[int, int]) -> list[Sequence]:
        """A sequence for each choice in ``tokens``, in the place of ``stem``: see ``Forks``."""
        return self._forks.fork(stem, tokens)

    def take_copies(self) -> tuple[Copy, ...]:
        """What the next step copies before it writes."""
        return self._forks.take_copies()

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

    # -- holds -----------------------------------------------------------------------------

    def hold(self, seq: Sequence) -> Hold:
        """Hold the blocks of a live sequence: all, as they must become reusable together."""
        hold = Hold(self._next_hold_id, seq.seq_id, tuple(seq.blocks))
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
            wrong += self._check_unwritten(seq, sharers)
        for part in running.slices if running is not None else ():
            if any(not owners[b] and not holds[b] for b in part.block_table):
                wrong.append(f"the running step uses blocks that {part.seq_id} no longer has")
            written = part.block_table[part.start // self._block_size :]
            if any(self._pool.key(b) is not None for b in written):
                wrong.append(f"the running step writes finished blocks of {part.seq_id}")
        return wrong

    def _check_unwritten(self, seq: Sequence, sharers: Mapping[int, int]) -> list[str]:
        """Blocks that ``seq`` may write: promised ones, and then some that are its alone, or that
        all who have them will copy before they write."""
        pool, size, wrong = self._pool, self._block_size, list[str]()
        for index, block in enumerate(seq.blocks[seq.computed // size :], seq.computed // size):
            owners = sharers[block] if seq.forked else 1
            alone = pool.key(block) is None and pool.owners(block) == owners
            if index * size >= seq.promised:
                if not alone or block in pool.promises:
                    wrong.append(f"block {block}, to be written by {seq.seq_id}, is shared")
            elif (
                pool.promises.find(seq.keys[index]) != block and pool.find(seq.keys[index]) != block
            ):
                wrong.append(f"block {block} of {seq.seq_id} is neither computed nor promised")
        return wrong
