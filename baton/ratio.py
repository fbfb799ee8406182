"""A running quotient: what something costs, or brings, per unit of something else."""

from __future__ import annotations

from dataclasses import dataclass

#: What the observations before the last one still count, one after the other.
_KEEP = 7 / 8


@dataclass(slots=True)
class Ratio:
    """A running quotient of two sums, so that large observations weigh more than small ones."""

    amount: float = 0.0
    units: float = 0.0

    def add(self, amount: float, units: float, keep: float = _KEEP) -> None:
        """Count an observation; all before it count ``keep`` (0 to 1) of what they did."""
        self.amount = self.amount * keep + amount
        self.units = self.units * keep + units

    @property
    def value(self) -> float:
        """Amount per unit; 0 while nothing is known."""
        return self.amount / self.units if self.units else 0.0
