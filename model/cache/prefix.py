"""The prefix cache: which full blocks hold the KV of which token prefixes. No torch.

How keys are made is in ``baton.prefix_keys``. The blocks and their keys live in BlockPool; this
file knows only how keys are followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from baton.prefix_keys import PrefixKeys
from model.cache.blocks import BlockPool


class PrefixCache(PrefixKeys):
    """Makes keys of tokens, and finds the blocks of ``pool`` that have them. Not thread-safe."""

    def __init__(self, pool: BlockPool, block_size: int, layout: str) -> None:
        super().__init__(layout, block_size)
        self._pool = pool

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
