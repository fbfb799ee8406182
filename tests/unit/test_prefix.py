"""PrefixCache: which blocks a prompt finds, and which it must not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache

SIZE = 4


def publish(pool: BlockPool, table: list[int], keys: list[bytes]) -> None:
    for block, key in zip(table, keys, strict=False):
        pool.publish(block, key)


def cache_with(*prompts: list[int], salt: bytes = b"") -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(64)
    cache = PrefixCache(pool, SIZE, "layout")
    for prompt in prompts:
        table = pool.allocate(-(-len(prompt) // SIZE))
        assert table is not None
        publish(pool, table, cache.keys(cache.root(salt), prompt))
        pool.release(table)
    return pool, cache


def hit(cache: PrefixCache, tokens: list[int], salt: bytes = b"", most: int = 10**6) -> int:
    keys = cache.keys(cache.root(salt), tokens)
    return len(cache.match(keys[: most // SIZE])) * SIZE


def test_finds_the_longest_chain_of_full_blocks() -> None:
    pool, cache = cache_with(list(range(10)))
    assert pool.counts().cached == 2 and pool.counts().free == 62
    assert hit(cache, list(range(10))) == 8
    assert hit(cache, list(range(7))) == 4
    assert hit(cache, [*range(4), 99, 5, 6, 7]) == 4
    assert hit(cache, [99, *range(1, 8)]) == 0
    assert hit(cache, list(range(4, 8))) == 0, "a block without its parent is another block"
    assert hit(cache, list(range(8)), most=7) == 4
    assert hit(cache, []) == 0


def test_salt_and_layout_separate() -> None:
    pool, cache = cache_with(list(range(8)), salt=b"tenant")
    assert hit(cache, list(range(8)), b"tenant") == 8
    assert hit(cache, list(range(8)), b"other") == 0
    assert hit(cache, list(range(8))) == 0
    assert hit(PrefixCache(pool, SIZE, "another"), list(range(8)), b"tenant") == 0


def test_the_second_of_two_equal_blocks_stays_private() -> None:
    pool, _ = cache_with(list(range(8)), list(range(8)))
    assert pool.counts().cached == 2


def test_keys_go_on_where_they_stopped() -> None:
    _, cache = cache_with()
    tokens = list(range(12))
    keys = cache.keys(cache.root(b""), tokens[:5])
    assert len(keys) == 1
    assert keys + cache.keys(keys[0], tokens[4:]) == cache.keys(cache.root(b""), tokens)


def test_what_is_coming_is_found_after_what_is_there() -> None:
    pool = BlockPool(8)
    cache = PrefixCache(pool, SIZE, "layout")
    table = pool.allocate(3) or []
    keys = cache.keys(cache.root(b""), range(12))
    pool.publish(table[0], keys[0])
    for block, key in zip(table[1:], keys[1:], strict=True):
        assert pool.promise(block, key)
    assert cache.match(keys) == table[:1]
    assert cache.coming(keys, 1) == table[1:]
    assert cache.coming(cache.keys(cache.root(b"other"), range(12)), 0) == []


def test_a_child_whose_parent_is_evicted_is_not_found() -> None:
    pool = BlockPool(2)
    cache = PrefixCache(pool, SIZE, "layout")
    parent, child = pool.allocate(2) or []
    publish(pool, [parent, child], cache.keys(cache.root(b""), range(8)))
    pool.release([parent])
    assert pool.allocate(1) == [parent]
    assert hit(cache, list(range(8))) == 0
    assert pool.check({parent: 1, child: 1}, {}) == []


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=20), max_size=6),
    st.lists(st.integers(0, 1), max_size=20),
)
def test_match_is_the_longest_common_prefix_in_blocks(
    prompts: list[list[int]], query: list[int]
) -> None:
    _, cache = cache_with(*prompts)
    longest = 0
    for prompt in prompts:
        full = len(prompt) // SIZE * SIZE
        while longest < min(full, len(query) // SIZE * SIZE):
            if prompt[: longest + SIZE] != query[: longest + SIZE]:
                break
            longest += SIZE
    assert hit(cache, query) == longest
