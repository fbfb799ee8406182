"""The prefix cache: which full blocks hold the KV of which token prefixes. No torch.

A key is blake2b-128 of (parent key, token ids of one full block), so it names the whole prefix
up to and including the block (the chained block hash of vLLM's prefix cache, with a digest that
nobody can collide on purpose). Chains are rooted in (model revision and layout, salt): KV of
another model, or of a tenant with another salt, can never be found.

The blocks and their keys live in BlockPool; this file knows only how keys are made and followed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice

from model.cache.blocks import BlockPool

KEY_BYTES = 16
_ID_BYTES = array("I").itemsize


class PrefixCache:
    """Makes keys of tokens, and finds the blocks of ``pool`` that have them. Not thread-safe."""

    def __init__(self, pool: BlockPool, block_size: int, layout: str) -> None:
        """``layout``: whatever must be equal for one block's bytes to serve another sequence
        (model revision, layers, heads, dtype, ...)."""
        self._pool = pool
        self._block_size = block_size
        self._layout = blake2b(layout.encode(), digest_size=KEY_BYTES).digest()

    def root(self, salt: bytes) -> bytes:
        """What the first key of every chain of a salt builds on."""
        salted = blake2b(self._layout + salt, digest_size=KEY_BYTES, person=b"baton-root")
        return salted.digest()

    def keys(self, parent: bytes, tokens: Sequence[int]) -> list[bytes]:
        """The keys of the full blocks of ``tokens``, each id in 0 .. 2^32 - 1, that follow
        ``parent``, the key of the block before or the root."""
        raw, step = array("I", tokens).tobytes(), self._block_size * _ID_BYTES
        keys = []
        for start in range(0, len(raw) - step + 1, step):
            parent = blake2b(parent + raw[start : start + step], digest_size=KEY_BYTES).digest()
            keys.append(parent)
        return keys

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached chain that ``keys`` begin with; not pinned yet."""
        return _until_none(map(self._pool.find, keys))

    def coming(self, keys: Sequence[bytes], start: int) -> list[int]:
        """The blocks of the longest chain from index ``start`` of ``keys`` on that live sequences
        have promised to compute; not pinned yet."""
        return _until_none(map(self._pool.promises.find, islice(keys, start, None)))


def _until_none(found: Iterable[int | None]) -> list[int]:
    blocks = []
    for block in found:
        if block is None:
            break
        blocks.append(block)
    return blocks
