"""What workers tell of their caches, and the gateway's index of it, against brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.identity import CompatibilityClass, Identity, Role
from baton.prefix_keys import PrefixKeys, digest, pack_digests, unpack_digests
from baton.v1 import worker_pb2
from gateway.caches import CacheGap, CacheIndex, Prefix
from gateway.fleet import Load, Report, Worker
from model.cache.blocks import BlockPool
from model.cache.journal import Journal

CLASS = CompatibilityClass("m", layers=2, kv_heads=1, head_size=8, block_size=4)
KEYS = PrefixKeys(CLASS.layout, CLASS.block_size)


def worker(name: str) -> Worker:
    report = Report(
        identity=Identity(name, CLASS),
        roles=frozenset({Role.PREFILL}),
        local_prefill=False,
        model="m",
        max_model_len=1000,
        vocab_size=10,
        load=Load(),
        transports=(),
        draining=False,
    )
    return Worker(f"{name}:1", report)


def keys_of(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    return KEYS.keys(KEYS.root(salt), tokens)


def told(
    position: int, since: int | None, entered: list[bytes], left: list[bytes]
) -> worker_pb2.CacheChanges:
    return worker_pb2.CacheChanges(
        position=position,
        since=since or 0,
        whole=since is None,
        entered=pack_digests(entered),
        left=pack_digests(left),
    )


def tell(index: CacheIndex, to: Worker, *prompts: list[int]) -> None:
    """The whole of a cache that holds these prompts."""
    keys = {key for prompt in prompts for key in keys_of(prompt)}
    index.apply(to, told(len(keys), None, list(keys), []))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=60))
def test_a_reader_of_the_journal_knows_the_cache(steps: list[tuple[int, bool, bool]]) -> None:
    """However rarely it reads, and however little is kept."""
    journal, cache, known = Journal(4), set[bytes](), set[bytes]()
    position: int | None = None
    for number, entered, read in steps:
        key = bytes([number]) * 16
        if entered != (key in cache):
            (cache.add if entered else cache.discard)(key)
            journal.note(key, entered)
        if read:
            changes = journal.since(position, cache)
            position = changes.position
            if changes.whole:
                known.clear()
            assert not known & set(changes.entered) or not changes.whole
            known = (known | set(changes.entered)) - set(changes.left)
            assert known == cache


def test_a_pool_notes_what_enters_and_leaves() -> None:
    pool = BlockPool(2)
    first, second = keys_of(list(range(8)))
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.publish(blocks[0], first)
    pool.publish(blocks[1], second)
    assert pool.changes(None) == (2, True, [first, second], [])
    pool.release(blocks)
    pool.allocate(1)
    assert pool.changes(2) == (3, False, [], [second]), "the deepest goes first"
    assert pool.changes(1) == (3, False, [], [second]), "came and went"


@given(st.integers(0, 90), st.binary(max_size=4))
def test_a_chain_is_what_workers_make(tokens: int, salt: bytes) -> None:
    prompt = list(range(tokens))
    chain = Prefix(prompt, salt).chain(CLASS)
    expected = [digest(key) for key in keys_of(prompt[:-1], salt)]
    assert list(chain) == expected
    assert chain.digests == list(chain) == expected, "made once"


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_digests_pack(numbers: list[int]) -> None:
    keys = [number.to_bytes(8, "little") + bytes(8) for number in numbers]
    assert unpack_digests(pack_digests(keys)) == numbers == [digest(key) for key in keys]


@settings(deadline=None)
@given(st.data())
def test_the_index_against_brute_force(data: st.DataObject) -> None:
    """Workers fill and empty their caches, each closed at any time; come, go and start anew."""
    tree = [(a, b, c) for a in range(2) for b in range(2) for c in range(2)]
    prompts = [[x for x in path for _ in range(4)] for path in tree]
    index, workers = CacheIndex(), [worker(str(i)) for i in range(4)]
    caches: dict[Worker, set[bytes]] = {}
    positions: dict[Worker, int] = {}
    for _ in range(data.draw(st.integers(0, 25))):
        who = data.draw(st.sampled_from(workers))
        if data.draw(st.integers(0, 9)) == 0:
            index.forget(who)
            caches.pop(who, None)
            continue
        before = caches.get(who)
        held = [data.draw(st.integers(0, 3)) for _ in prompts]
        now = {k for p, n in zip(prompts, held, strict=True) for k in keys_of(p)[:n]}
        old = before or set()
        since = None if before is None else positions[who]
        positions[who] = positions.get(who, 0) + 1
        changes = told(positions[who], since, list(now - old), list(old - now))
        index.apply(who, changes)
        caches[who] = now
    assert len(index) == len(set().union(*caches.values()))
    for prompt in prompts:
        hits = index.look_up(Prefix([*prompt, 9], b"").chain(CLASS))
        depths = {w: sum(k in caches.get(w, ()) for k in keys_of(prompt)) for w in workers}
        assert {w: hits.tokens(w) for w in workers} == {w: 4 * n for w, n in depths.items()}
        ranked = list(dict.fromkeys(hits.holders(random.Random(0))))
        assert set(ranked) == {w for w, n in depths.items() if n}
        assert [depths[w] for w in ranked] == sorted((depths[w] for w in ranked), reverse=True)


def test_a_gap_voids_what_was_known() -> None:
    index, who = CacheIndex(), worker("a")
    tell(index, who, list(range(8)))
    assert index.blocks(who) == 2
    with pytest.raises(CacheGap, match="change 5 was to follow, 2 is known"):
        index.apply(who, told(6, 5, [], []))
    assert index.blocks(who) == len(index) == 0
    with pytest.raises(CacheGap):
        index.apply(who, told(7, 6, [], []))
    tell(index, who, list(range(4)))
    assert index.blocks(who) == 1


def test_another_salt_or_class_finds_nothing() -> None:
    index, who = CacheIndex(), worker("a")
    tell(index, who, list(range(8)))
    other = CompatibilityClass("m", layers=3, kv_heads=1, head_size=8, block_size=4)
    assert index.look_up(Prefix(range(9), b"").chain(CLASS)).tokens(who) == 8
    assert index.look_up(Prefix(range(9), b"s").chain(CLASS)).tokens(who) == 0
    assert index.look_up(Prefix(range(9), b"").chain(other)).tokens(who) == 0


def test_digests_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="7 bytes are no whole number of 8-byte digests"):
        unpack_digests(bytes(7))
