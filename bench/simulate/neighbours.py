"""Workers that share a machine: each computes slower while others do.

They share memory's bandwidth, caches and, with a gateway beside them, cores. By how much longer a
step takes for each neighbour that computes is measured (``prompt_beside`` and ``decode_beside`` of
``Costs``) and holds from the next step on: one that runs is not made longer or shorter.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.costs import Costs
from bench.simulate.prices import Prices


class Neighbours:
    """Who of them computes, and what that makes a step cost."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._share = bool(costs.prompt_beside or costs.decode_beside)
        self._cuts: list[Callable[[], None]] = []
        self._computing = 0
        self._prices: dict[tuple[bool, int], Prices] = {}

    def join(self, cut: Callable[[], None]) -> None:
        """``cut`` lets the running step of a worker that leaps be the last one at its price."""
        if self._share:
            self._cuts.append(cut)

    def turned(self, computes: bool, cut: Callable[[], None]) -> None:
        """A worker, which joined with ``cut``, has begun or stopped to compute."""
        self._computing += 1 if computes else -1
        for other in self._cuts:
            if other != cut:
                other()

    def prices(self, *, prompts: bool, computes: bool) -> Prices:
        """Of a worker's next step, with or without prompt tokens; it ``computes`` already where
        that was told."""
        others = self._computing - computes if self._share else 0
        if (found := self._prices.get((prompts, others))) is None:
            costs = self._costs
            share = others * (costs.prompt_beside if prompts else costs.decode_beside)
            found = self._prices[prompts, others] = Prices.of(costs, longer=share)
        return found
