"""Pauses between attempts to reach a peer: they double, with jitter, up to a limit."""

from __future__ import annotations

import random


class Backoff:
    """Starts short and doubles, so a peer that comes back is noticed after about as long again as
    it was away, and never later than ``longest``."""

    def __init__(self, first: float, longest: float, rng: random.Random | None = None) -> None:
        """Seconds. ``rng`` spreads peers that were lost together."""
        self._first = first
        self._longest = longest
        self._rng = rng or random.Random()
        self._whole = first

    def reset(self) -> None:
        """The peer was reached: start short again."""
        self._whole = self._first

    def pause(self) -> float:
        """Seconds to wait now: between half and all of a time that doubles at each call."""
        whole, self._whole = self._whole, min(self._longest, 2 * self._whole)
        return whole * self._rng.uniform(0.5, 1.0)
