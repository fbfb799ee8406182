"""The prefix cache: which full blocks hold the KV of which token prefixes. No torch.

A key is blake2b-128 of (parent key, token ids of one full block), so it names the whole prefix
up to and including the block (the chained block hash of vLLM's prefix cache, with a digest that
nobody can collide on purpose). Chains are rooted in (model revision and layout, salt): KV of
another model, or of a tenant with another salt, can never be found.

The blocks and their keys live in BlockPool; this file knows only how keys are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from model.cache.blocks import BlockPool

KEY_BYTES = 16


class Chain(NamedTuple):
    """How far a token sequence has been hashed: ``blocks`` full blocks, ending in ``key``."""

    key: bytes
    blocks: int


class Match(NamedTuple):
    """The longest cached chain of full blocks. ``blocks`` are not pinned yet."""

    blocks: list[int]
    chain: Chain


class PrefixCache:
    """Finds and inserts full blocks of ``pool`` by their tokens. Not thread-safe."""

    def __init__(self, pool: BlockPool, block_size: int, layout: str) -> None:
        """``layout``: whatever must be equal for one block's bytes to serve another sequence
        (model revision, layers, heads, dtype, ...)."""
        self._pool = pool
        self._block_size = block_size
        self._layout = blake2b(layout.encode(), digest_size=KEY_BYTES).digest()

    def root(self, salt: bytes) -> Chain:
        """The empty chain of a salt."""
        salted = blake2b(self._layout + salt, digest_size=KEY_BYTES, person=b"baton-root")
        return Chain(salted.digest(), 0)

    def match(self, tokens: Sequence[int], salt: bytes, max_tokens: int) -> Match:
        """The longest chain of cached full blocks within the first ``max_tokens`` tokens.

        O(blocks found), one hash each and one for the first that is missing.
        """
        size, blocks, (key, _) = self._block_size, list[int](), self.root(salt)
        for start in range(0, min(len(tokens), max_tokens) - size + 1, size):
            longer = child_key(key, tokens[start : start + size])
            block = self._pool.find(longer)
            if block is None:
                break
            blocks.append(block)
            key = longer
        return Match(blocks, Chain(key, len(blocks)))

    def insert(self, chain: Chain, tokens: Sequence[int], table: Sequence[int]) -> Chain:
        """Publish the full blocks of ``tokens`` that ``chain`` does not cover yet.

        ``tokens`` are the tokens from position ``chain.blocks * block_size`` on whose KV is
        written, in every layer, and verified; a last partial block is left for later.
        ``table`` is the sequence's whole block table. Returns the chain over all full blocks.
        A block that is cached elsewhere stays private (see ``BlockPool.publish``).
        """
        size, (key, blocks) = self._block_size, chain
        for start in range(0, len(tokens) - size + 1, size):
            key = child_key(key, tokens[start : start + size])
            self._pool.publish(table[blocks], key)
            blocks += 1
        return Chain(key, blocks)


def child_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the block that holds ``tokens``, each in 0 .. 2^32 - 1, after ``parent``."""
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=KEY_BYTES).digest()
