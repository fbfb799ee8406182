"""Who owns which KV block: reference counts, the free list and LRU eviction. No torch.

Every block is in exactly one state, *derived* from two counts and a key, so that no operation
can forget to set it:

    owners > 0                      OWNED        read or written by live sequences
    owners = 0, holds > 0           QUARANTINED  no owner, but a transfer or a step still uses it
    owners = holds = 0, has a key   CACHED       its contents are worth keeping; evictable
    otherwise                       FREE

Ownership, from allocation to reuse:

    who has it                       who gives it up                      and then it is
    -------------------------------  -----------------------------------  --------------------
    a live sequence (owners)         Scheduler, when the sequence ends    quarantined if held,
                                                                          else cached or free
    a transfer (holds)               whoever called Engine.hold, when     cached or free, once
                                     its bytes have stopped moving        nobody owns it
    the running step, of a sequence  Scheduler, when the step commits     cached or free
      cancelled meanwhile (holds)
    the prefix cache (a key)         allocate(), least recently used      owned by the taker
                                     first, the deepest of a chain first

A block with a key is immutable: its contents are what the key says for as long as it has one.
One without a key is written by its owner alone; if its key is *promised* (``promises.py``) it may
have several, of whom one at a time writes.

Whoever owns or holds a block with a key does so with all blocks that its key builds on, and
releases them together. So of a chain the deeper block is always the one used less recently, and
no block is ever evicted before those that are of no use without it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from model.cache.journal import Changes, Journal
from model.cache.promises import Promises


class BlockState(Enum):
    FREE = "free"
    CACHED = "cached"
    OWNED = "owned"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks by state; they add up to the pool."""

    free: int
    cached: int
    owned: int
    quarantined: int


class BlockPool:
    """The books of a pool of ``num_blocks`` blocks, ids 0 .. num_blocks - 1.

    Not thread-safe: the caller serialises. Every operation is O(blocks it names). A count that
    would become negative, or a reference to a block nobody has, is a defect of the caller and
    raises RuntimeError before anything changes for that block.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, not {num_blocks}")
        self._owners = [0] * num_blocks
        self._holds = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._free = list(reversed(range(num_blocks)))  # a stack: warm blocks are reused first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._quarantined = 0
        self._journal = Journal(num_blocks)
        self.promises = Promises()

    # -- what is there ---------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        return len(self._owners)

    @property
    def available(self) -> int:
        """Blocks that ``allocate`` could hand out now."""
        return len(self._free) + len(self._cached)

    def counts(self) -> BlockCounts:
        free, cached, quarantined = len(self._free), len(self._cached), self._quarantined
        owned = self.num_blocks - free - cached - quarantined
        return BlockCounts(free, cached, owned, quarantined)

    def state(self, block: int) -> BlockState:
        if self._owners[block]:
            return BlockState.OWNED
        if self._holds[block]:
            return BlockState.QUARANTINED
        return BlockState.FREE if self._keys[block] is None else BlockState.CACHED

    def owners(self, block: int) -> int:
        """How many live sequences reference the block."""
        return self._owners[block]

    def find(self, key: bytes) -> int | None:
        """The block whose contents have this key; pin it with ``share`` before using it."""
        return self._by_key.get(key)

    def key(self, block: int) -> bytes | None:
        """The key of the block's contents, or None while they are private to their writer."""
        return self._keys[block]

    @property
    def changed(self) -> int:
        """How often a key has come or gone so far."""
        return self._journal.position

    def changes(self, since: int | None) -> Changes:
        """The keys that came and went after change number ``since``; all that are there where that
        is None, or too long ago."""
        return self._journal.since(since, self._by_key)

    # -- owners ----------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int] | None:
        """Take ``count`` blocks, each with one owner; all, or None and nothing changes.

        Free blocks go first, then cached ones, which lose their key.
        """
        if count > self.available:
            return None
        while len(self._free) < count:
            self._evict()
        border = len(self._free) - count
        taken = self._free[border:]
        del self._free[border:]
        taken.reverse()
        for block in taken:
            self._owners[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add an owner to blocks found by ``find``, promised, or of a sequence that goes on as
        several: no eviction until it releases them."""
        for block in blocks:
            if self._keys[block] is None and not self._owners[block]:
                raise RuntimeError(f"block {block} has no key and no owner: it cannot be shared")
            if not self._owners[block]:
                if self._holds[block]:
                    self._quarantined -= 1
                else:
                    del self._cached[block]
            self._owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one owner off each block of a table, deepest first, so that of two blocks of a
        chain the deeper one is evicted first: a prefix without its suffix is still of use."""
        owners, promised = self._owners, len(self.promises) > 0
        for block in reversed(blocks):
            if not owners[block]:
                raise RuntimeError(f"block {block} has no owner to release it")
            owners[block] -= 1
            if not owners[block]:
                if promised:
                    self.promises.end(block)
                if self._holds[block]:
                    self._quarantined += 1
                else:
                    self._settle(block)

    # -- holds -----------------------------------------------------------------------------

    def hold(self, blocks: Iterable[int]) -> None:
        """Keep blocks from reuse, whatever becomes of their owners, until ``unhold``."""
        for block in blocks:
            if not self._owners[block] and not self._holds[block]:
                raise RuntimeError(f"block {block} is not in use and cannot be held")
            self._holds[block] += 1

    def unhold(self, blocks: Sequence[int]) -> None:
        """End one hold on each block; those without owner and hold become reusable."""
        for block in reversed(blocks):
            if not self._holds[block]:
                raise RuntimeError(f"block {block} is not held")
            self._holds[block] -= 1
            if not self._holds[block] and not self._owners[block]:
                self._quarantined -= 1
                self._settle(block)

    # -- keys ------------------------------------------------------------------------------

    def promise(self, block: int, key: bytes) -> bool:
        """Say what an owned block will hold, so that others may share it before it is computed.

        False, and nothing changes, when another block has that key or has promised it.
        """
        self._require_private(block)
        if block in self.promises:
            raise RuntimeError(f"block {block} is promised already")
        if key in self._by_key or self.promises.find(key) is not None:
            return False
        self.promises.make(block, key)
        return True

    def publish(self, block: int, key: bytes) -> bool:
        """Give an owned block a key, so that others may share it. Its contents are final.

        False, and nothing changes, when another block already has that key or has promised it:
        two sequences computed the same tokens, and the second's copy stays private and is freed
        with it.
        """
        self._require_private(block)
        if key in self._by_key or self.promises.find(key) not in (None, block):
            return False
        self.promises.end(block)
        self._keys[block] = key
        self._by_key[key] = block
        self._journal.note(key, entered=True)
        return True

    def _require_private(self, block: int) -> None:
        if not self._owners[block] or self._keys[block] is not None:
            raise RuntimeError(f"block {block} is not a private block of a live sequence")

    def _settle(self, block: int) -> None:
        """Nobody has the block any more: to the young end of the LRU list, or the free stack."""
        if self._keys[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _evict(self) -> None:
        """Free the least recently used cached block. It and ``publish`` alone change keys."""
        block, _ = self._cached.popitem(last=False)
        key = self._keys[block]
        assert key is not None, f"cached block {block} has no key"
        del self._by_key[key]
        self._keys[block] = None
        self._journal.note(key, entered=False)
        self._free.append(block)

    # -- the books -------------------------------------------------------------------------

    def check(self, owners: Mapping[int, int], holds: Mapping[int, int]) -> list[str]:
        """Compare the counts with references recomputed by the caller (block -> count; absent
        is 0) and the lists with the counts. One line per violation. O(pool)."""
        wrong: list[str] = []
        by_state: dict[BlockState, set[int]] = {state: set() for state in BlockState}
        for block in range(self.num_blocks):
            by_state[self.state(block)].add(block)
            for name, expected, count in (
                ("owners", owners.get(block, 0), self._owners[block]),
                ("holds", holds.get(block, 0), self._holds[block]),
            ):
                if expected != count:
                    wrong.append(f"block {block}: {name} is {count}, references say {expected}")
        if sorted(self._free) != sorted(by_state[BlockState.FREE]):
            wrong.append("the free list is not the set of free blocks")
        if set(self._cached) != by_state[BlockState.CACHED]:
            wrong.append("the LRU list is not the set of cached blocks")
        if self._quarantined != len(by_state[BlockState.QUARANTINED]):
            wrong.append(
                f"quarantined is counted as {self._quarantined}, "
                f"but {len(by_state[BlockState.QUARANTINED])} blocks are"
            )
        keyed = {key: block for block, key in enumerate(self._keys) if key is not None}
        if keyed != self._by_key or len(keyed) != sum(k is not None for k in self._keys):
            wrong.append("the key index does not match the blocks' keys")
        return wrong + self.promises.check(by_state[BlockState.OWNED], keyed)
