"""BlockPool: one state per block, all or nothing, least recently used and deepest out first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.cache.blocks import BlockCounts, BlockPool, BlockState


def test_allocates_all_or_nothing() -> None:
    pool = BlockPool(3)
    assert pool.allocate(4) is None
    assert pool.counts() == BlockCounts(free=3, cached=0, owned=0, quarantined=0)
    taken = pool.allocate(3)
    assert taken is not None and sorted(taken) == [0, 1, 2]
    assert pool.allocate(1) is None
    assert pool.allocate(0) == []


def test_every_state_in_turn() -> None:
    pool = BlockPool(1)
    assert pool.state(0) is BlockState.FREE
    pool.allocate(1)
    assert pool.state(0) is BlockState.OWNED
    assert pool.publish(0, b"k")
    pool.hold([0])
    assert pool.state(0) is BlockState.OWNED
    pool.release([0])
    assert pool.state(0) is BlockState.QUARANTINED
    assert pool.allocate(1) is None, "a held block is not reusable"
    pool.share([0])
    assert pool.state(0) is BlockState.OWNED, "its contents may still be read"
    pool.release([0])
    pool.unhold([0])
    assert pool.state(0) is BlockState.CACHED
    assert pool.allocate(1) == [0], "cached blocks are evicted when nothing is free"
    assert pool.find(b"k") is None and pool.key(0) is None


def test_evicts_least_recently_used_and_deepest_first() -> None:
    pool = BlockPool(4)
    old = pool.allocate(2)
    new = pool.allocate(2)
    assert old is not None and new is not None
    for block in old + new:
        pool.publish(block, b"%d" % block)
    pool.release(old)
    pool.release(new)
    assert [pool.allocate(1) for _ in range(4)] == [[old[1]], [old[0]], [new[1]], [new[0]]]


def test_sharing_renews_a_block() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2) or []
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.release([first])
    pool.release([second])
    pool.share([first])
    assert pool.allocate(2) is None, "a shared block is pinned"
    pool.release([first])
    assert pool.allocate(1) == [second]


def test_a_hit_makes_its_whole_chain_young_and_leaves_the_rest_old() -> None:
    pool = BlockPool(5)
    chain, other = pool.allocate(3) or [], pool.allocate(2) or []
    for block in chain + other:
        pool.publish(block, b"%d" % block)
    pool.release(chain)
    pool.release(other)
    pool.share(chain[:2])
    pool.release(chain[:2])
    evicted = [pool.allocate(1) for _ in range(5)]
    assert evicted == [[b] for b in (chain[2], other[1], other[0], chain[1], chain[0])]


def test_a_promised_block_has_several_owners_before_it_is_full() -> None:
    pool = BlockPool(3)
    first, second, third = pool.allocate(3) or []
    assert pool.promise(first, b"k") and pool.promises.find(b"k") == first
    assert not pool.promise(second, b"k"), "one block is enough"
    assert not pool.publish(second, b"k"), "what is promised comes from the block that promised it"
    pool.share([first])
    pool.release([first])
    pool.promises.fill(first, 3)
    assert pool.promises.progress(first) == 3 and pool.find(b"k") is None
    assert pool.publish(first, b"k")
    assert pool.promises.progress(first) is None and pool.find(b"k") == first
    assert pool.promise(third, b"l")
    pool.release([third])
    assert pool.promises.find(b"l") is None and pool.promises.filled == 0
    assert pool.check({first: 1, second: 1}, {}) == []


def test_a_key_belongs_to_one_block() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2) or []
    assert pool.publish(first, b"k")
    assert not pool.publish(second, b"k")
    pool.release([first, second])
    assert pool.counts() == BlockCounts(free=1, cached=1, owned=0, quarantined=0)
    assert pool.find(b"k") == first


def test_refuses_references_that_nobody_has() -> None:
    pool = BlockPool(2)
    with pytest.raises(RuntimeError, match="no owner"):
        pool.release([0])
    with pytest.raises(RuntimeError, match="not held"):
        pool.unhold([0])
    with pytest.raises(RuntimeError, match="not in use"):
        pool.hold([0])
    with pytest.raises(RuntimeError, match="no key"):
        pool.share([0])
    with pytest.raises(RuntimeError, match="not a private block"):
        pool.publish(0, b"k")
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_check_names_what_is_wrong() -> None:
    pool = BlockPool(2)
    taken = pool.allocate(1) or []
    assert pool.check({taken[0]: 1}, {}) == []
    assert pool.check({}, {}) == [f"block {taken[0]}: owners is 1, references say 0"]
    assert "holds is 0" in pool.check({taken[0]: 1}, {taken[0]: 2})[0]


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of legal calls against a model that is only two multisets and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.tables: list[list[int]] = []
        self.held: list[list[int]] = []
        self.next_key = 0

    @rule(count=st.integers(0, 7))
    def allocate(self, count: int) -> None:
        counts = self.pool.counts()
        taken = self.pool.allocate(count)
        assert (taken is None) == (count > counts.free + counts.cached)
        if taken is not None:
            busy = {b for table in self.tables + self.held for b in table}
            assert not busy & set(taken) and len(set(taken)) == count
            self.tables.append(taken)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.hold(table)
        self.held.append(list(table))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        self.pool.unhold(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(data=st.data(), reuse=st.booleans())
    def publish(self, data: st.DataObject, reuse: bool) -> None:
        owned = {b for table in self.tables for b in table}
        private = sorted(b for b in owned if self.pool.key(b) is None)
        if private:
            self.next_key += not reuse
            self.pool.publish(data.draw(st.sampled_from(private)), b"%d" % self.next_key)

    @rule(data=st.data(), reuse=st.booleans(), filled=st.integers(0, 3))
    def promise(self, data: st.DataObject, reuse: bool, filled: int) -> None:
        promises = self.pool.promises
        owned = {b for table in self.tables for b in table}
        private = sorted(b for b in owned if self.pool.key(b) is None and b not in promises)
        if private:
            self.next_key += not reuse
            block, key = data.draw(st.sampled_from(private)), b"%d" % self.next_key
            known = self.pool.find(key) is not None or promises.find(key) is not None
            assert self.pool.promise(block, key) is not known
            if not known:
                promises.fill(block, filled)

    @rule(keys=st.lists(st.integers(0, 20), max_size=3, unique=True))
    def share(self, keys: list[int]) -> None:
        names = [b"%d" % key for key in keys]
        found = [find(key) for key in names for find in (self.pool.find, self.pool.promises.find)]
        table = [block for block in found if block is not None]
        self.pool.share(table)
        self.tables.append(table)

    @invariant()
    def books_balance(self) -> None:
        owners = Counter(b for table in self.tables for b in table)
        holds = Counter(b for table in self.held for b in table)
        assert self.pool.check(owners, holds) == []
        counts = self.pool.counts()
        assert counts.free + counts.cached + counts.owned + counts.quarantined == 6


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
