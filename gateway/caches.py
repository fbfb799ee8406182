"""Which worker caches the beginning of which prompt, as the workers' status streams tell it.

One index for all workers, from a block's digest to those that hold it: a prompt is looked up in as
many steps as some worker has blocks of it, however many workers there are. What a worker holds is
closed: whoever has a block has those that it builds on, as its cache evicts the deepest first.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from baton.identity import CompatibilityClass
from baton.prefix_keys import PrefixKeys, digest, unpack_digests
from baton.v1 import worker_pb2
from gateway.fleet import Worker

#: Blocks whose keys are made at once: few calls where most of a prompt is cached, little in vain
#: where nothing is.
_AT_ONCE = 16
#: The first tokens of a prompt, by which requests without a session's name are told apart.
SESSION_TOKENS = 256


class CacheGap(Exception):
    """Changes are missing: the worker's whole cache has to be told again."""


class Chain:
    """The digests of a prompt's full blocks, in order, made as far as somebody asks.

    The last token is left out: it is computed whatever is cached.
    """

    def __init__(self, keys: PrefixKeys, salt: bytes, tokens: Sequence[int]) -> None:
        self.block_size = keys.block_size
        self.digests: list[int] = []  #: those made so far
        self._keys = keys
        self._tokens = tokens
        self._end = (len(tokens) - 1) // keys.block_size * keys.block_size
        self._last = keys.root(salt)

    def __iter__(self) -> Iterator[int]:
        index = 0
        while index < len(self.digests) or self._make():
            yield self.digests[index]
            index += 1

    def _make(self) -> bool:
        """The next few; whether there were any."""
        start = len(self.digests) * self.block_size
        end = min(self._end, start + _AT_ONCE * self.block_size)
        if start >= end:
            return False
        keys = self._keys.keys(self._last, self._tokens[start:end])
        self._last = keys[-1]
        self.digests += map(digest, keys)
        return True


class Prefix:
    """A sequence as prefix caches know it: its tokens under a salt, in any class's blocks."""

    def __init__(self, tokens: Sequence[int], salt: bytes, session: str = "") -> None:
        """``session``: what its client calls the conversation, if anything."""
        self._tokens = tokens
        self._salt = salt
        self._session = session
        self._chains: dict[CompatibilityClass, Chain] = {}

    def __len__(self) -> int:
        """Tokens."""
        return len(self._tokens)

    def chain(self, compatibility: CompatibilityClass) -> Chain:
        """In blocks of that class; what was made of it is kept."""
        if (chain := self._chains.get(compatibility)) is None:
            keys = PrefixKeys(compatibility.layout, compatibility.block_size)
            chain = self._chains[compatibility] = Chain(keys, self._salt, self._tokens)
        return chain

    @cached_property
    def session(self) -> bytes:
        """Equal for requests of one session and salt; where it has no name, for those that begin
        with the same ``SESSION_TOKENS``."""
        tokens = array("I", self._tokens[:SESSION_TOKENS]).tobytes()
        return blake2b(blake2b(self._salt).digest() + (self._session.encode() or tokens)).digest()


@dataclass(frozen=True, slots=True)
class Hits:
    """What of one chain is cached where, at one moment."""

    chain: Chain
    #: (blocks, workers that have so many or more), the fewest blocks first.
    levels: Sequence[tuple[int, Sequence[Worker]]]
    known: dict[Worker, set[int]]

    def tokens(self, worker: Worker) -> int:
        """How many of the first tokens a worker caches."""
        if not self.levels or (held := self.known.get(worker)) is None:
            return 0
        # What it holds is closed, so a border can be searched for by halves.
        deepest = self.levels[-1][0]
        blocks = bisect(self.chain.digests, False, 0, deepest, key=lambda key: key not in held)
        return blocks * self.chain.block_size

    def holders(self, rng: random.Random) -> Iterator[Worker]:
        """Workers that have blocks of it, those with the most first, equal ones from a random one
        on; some come more than once."""
        for _, workers in reversed(self.levels):
            start = rng.randrange(len(workers))
            yield from workers[start:]
            yield from workers[:start]


class CacheIndex:
    """The caches of all workers that tell. All on the event loop."""

    def __init__(self) -> None:
        self._holders: dict[int, tuple[Worker, ...]] = {}
        self._held: dict[Worker, set[int]] = {}
        self._alone: dict[Worker, tuple[Worker, ...]] = {}  # most blocks have one holder: shared
        self._positions: dict[Worker, int] = {}

    def __len__(self) -> int:
        """Different blocks that somebody caches."""
        return len(self._holders)

    def blocks(self, worker: Worker) -> int:
        """How many a worker caches, as far as it told."""
        return len(self._held.get(worker, ()))

    def apply(self, worker: Worker, changes: worker_pb2.CacheChanges) -> None:
        """Take in what a worker tells. Raises CacheGap, and forgets what it told before, when
        something is missing; ValueError for what is no list of digests."""
        entered, left = unpack_digests(changes.entered), unpack_digests(changes.left)
        if changes.whole:
            self.forget(worker)
            self._held[worker], self._alone[worker] = set(), (worker,)
        elif self._positions.get(worker) != changes.since:
            had = self._positions.get(worker)
            self.forget(worker)
            raise CacheGap(f"its cache's change {changes.since} was to follow, {had} is known")
        self._positions[worker] = changes.position
        held, alone = self._held[worker], self._alone[worker]
        for key in left:
            if key in held:
                held.discard(key)
                self._remove(worker, key)
        for key in entered:
            if key not in held:
                held.add(key)
                others = self._holders.get(key)
                self._holders[key] = alone if others is None else (*others, worker)

    def forget(self, worker: Worker) -> None:
        """It is gone, or will tell all again. O(blocks it held)."""
        for key in self._held.pop(worker, ()):
            self._remove(worker, key)
        self._alone.pop(worker, None)
        self._positions.pop(worker, None)

    def look_up(self, chain: Chain) -> Hits:
        """O(blocks of ``chain`` that the worker with the most of them has)."""
        levels: list[tuple[int, Sequence[Worker]]] = []
        holders: Sequence[Worker] = ()
        blocks = 0
        for key in chain:
            found = self._holders.get(key)
            if found is None:
                break
            # As what is held is closed, as many are the same.
            if len(found) != len(holders) and blocks:
                levels.append((blocks, holders))
            holders = found
            blocks += 1
        if blocks:
            levels.append((blocks, holders))
        return Hits(chain, levels, self._held)

    def _remove(self, worker: Worker, key: int) -> None:
        holders = self._holders[key]
        rest = tuple(other for other in holders if other is not worker)
        if not rest:
            del self._holders[key]
        else:
            self._holders[key] = self._alone[rest[0]] if len(rest) == 1 else rest
