"""KV blocks that nobody tells apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from model.cache.blocks import BlockCounts, BlockPool

#: What every block is called.
_ANY = 0


class Counted(BlockPool):
    """The books of a worker that reuses nothing, where only numbers of blocks matter: a thousand
    workers' lists of all their blocks would be in no processor's cache.

    Blocks that are held are given up at once (``Memory.give_up``), so those are quarantined that
    are released next. Nothing is shared, promised or published.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__(1)
        self._all = self._unused = num_blocks
        self._held = 0  # and not released yet

    @property
    def num_blocks(self) -> int:
        return self._all

    @property
    def available(self) -> int:
        return self._unused

    def counts(self) -> BlockCounts:
        owned = self._all - self._unused - self._quarantined
        return BlockCounts(self._unused, 0, owned, self._quarantined)

    def owners(self, block: int) -> int:
        return 1

    def allocate(self, count: int) -> list[int] | None:
        if count > self._unused:
            return None
        self._unused -= count
        return [_ANY] * count

    def share(self, blocks: Iterable[int]) -> None:
        """Raises RuntimeError: there is nothing to share."""
        if any(True for _ in blocks):
            raise RuntimeError("blocks that are only counted cannot be shared")

    def release(self, blocks: Collection[int]) -> None:
        quarantined = min(len(blocks), self._held)
        self._held -= quarantined
        self._quarantined += quarantined
        self._unused += len(blocks) - quarantined

    def hold(self, blocks: Iterable[int]) -> None:
        self._held += sum(1 for _ in blocks)

    def unhold(self, blocks: Sequence[int]) -> None:
        self._quarantined -= len(blocks)
        self._unused += len(blocks)

    def check(self, owners: Mapping[int, int], holds: Mapping[int, int]) -> list[str]:
        """One line for each number that is not what references say."""
        counts, owned, held = self.counts(), sum(owners.values()), sum(holds.values())
        wrong = []
        if counts.owned != owned:
            wrong.append(f"{counts.owned} blocks are owned, references say {owned}")
        if counts.quarantined + self._held != held:
            wrong.append(f"{counts.quarantined} blocks are quarantined, holds say {held}")
        return wrong
