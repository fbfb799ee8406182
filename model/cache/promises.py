"""Blocks whose contents are known before they are computed. No torch."""

from __future__ import annotations

from collections.abc import Collection


class Promises:
    """Which owned blocks will hold the KV of which key, and how much of each is there.

    A promise is made when a block is set aside for tokens that are known, is kept when it is
    full (``BlockPool.publish``) and ends unkept with the block's last owner. Until then whoever
    wants the same tokens owns the same block, and whoever of them goes first computes it.
    """

    def __init__(self) -> None:
        self.filled = 0  #: tokens computed, of all of them together
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self._filled: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def find(self, key: bytes) -> int | None:
        """The block that will hold ``key``."""
        return self._blocks.get(key)

    def make(self, block: int, key: bytes) -> None:
        self._keys[block] = key
        self._blocks[key] = block
        self._filled[block] = 0

    def fill(self, block: int, tokens: int) -> None:
        """The first ``tokens`` of a promised block are computed."""
        self.filled += tokens - self._filled[block]
        self._filled[block] = tokens

    def progress(self, block: int) -> int | None:
        """Tokens of a promised block that are computed; None when no promise is open."""
        return self._filled.get(block)

    def end(self, block: int) -> None:
        """The promise, if there is one, is kept or can be kept no more."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._blocks[key]
            self.filled -= self._filled.pop(block)

    def check(self, owned: Collection[int], published: Collection[bytes]) -> list[str]:
        """One line per promise that nobody can keep, or that is kept already."""
        wrong = [f"block {b} is promised and has no owner" for b in self._keys if b not in owned]
        if any(self._blocks.get(key) != block for block, key in self._keys.items()):
            wrong.append("the promised keys do not match the promised blocks")
        if any(key in published for key in self._blocks):
            wrong.append("a promised key is published")
        if self.filled != sum(self._filled.values()):
            wrong.append(f"{self.filled} tokens of promised blocks are counted as computed")
        return wrong
