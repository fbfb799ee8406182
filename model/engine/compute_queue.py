"""The prompts that wait for compute, and how much of each step they get."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from model.engine.costs import StepCosts
from model.engine.plan import Slice
from model.engine.sequence import Sequence
from model.engine.settings import SchedulerSettings


class ComputeQueue:
    """Sequences by rank, first come, first served within it. Written by the scheduler alone.

    Beside decodes, prompts get what ``local_prefill_share`` allows; without, the whole step.

    A prompt whose KV is read too slowly (``lag``) comes after all others, by rank among its
    like, until its reader has caught up. It gets what they leave of a step, all of it if there
    are none: its first token never waits for its KV while nobody else wants to compute. It needs
    no ageing: what it waits for is its own reader, who catches up while nothing more is computed
    and does not depend on who goes first; one who takes nothing at all ends with the call.
    """

    def __init__(
        self, settings: SchedulerSettings, costs: StepCosts, clock: Callable[[], float]
    ) -> None:
        self.tokens = 0  #: missing tokens of all
        self._settings = settings
        self._costs = costs
        self._clock = clock
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, seq: Sequence) -> None:
        self._insert(seq)
        self.tokens += seq.missing

    def lag(self, seq: Sequence, behind: bool) -> None:
        """Move a waiting sequence behind the others, or back to its place among them."""
        self._waiting.remove(seq)
        seq.lagging = behind
        self._insert(seq)

    def computed(self, tokens: int) -> None:
        """So many tokens are missing no more."""
        self.tokens -= tokens

    def remove(self, seq: Sequence, left: int = 0) -> None:
        """``seq`` is computed, or has ended with ``left`` tokens missing."""
        self._waiting.remove(seq)
        self.tokens -= left

    def chunks(self, decodes: int) -> list[Slice]:
        """The slices to compute in a step beside so many decodes."""
        budget = self._budget(decodes)
        chunks: list[Slice] = []
        for seq in self._waiting[: max(self._settings.max_running - decodes, 0)]:
            if budget <= 0:
                break
            count = min(self._settings.chunk_tokens, budget, seq.missing)
            if seq.started_s is None:
                seq.started_s = self._clock()
            chunks.append(seq.next_slice(count))
            budget -= count
        return chunks

    def check(self) -> list[str]:
        """One line when the count of tokens is wrong."""
        missing = sum(seq.missing for seq in self._waiting)
        if missing == self.tokens:
            return []
        return [f"{missing} tokens wait for compute, but {self.tokens} are counted"]

    def _insert(self, seq: Sequence) -> None:
        insort(self._waiting, seq, key=lambda s: (s.lagging, s.rank))

    def _budget(self, decodes: int) -> int:
        """Prompt tokens for a step beside so many decodes."""
        rest = self._settings.max_tokens_per_step - decodes
        share = self._settings.local_prefill_share
        if share is None or not decodes or not self._waiting:
            return rest
        return min(rest, self._costs.allowance(decodes, share))
