"""The prompts that wait for compute, and how much of each step they get."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from model.engine.costs import StepCosts
from model.engine.order import urgency
from model.engine.plan import Slice
from model.engine.sequence import Sequence
from model.engine.settings import SchedulerSettings


class ComputeQueue:
    """Sequences in the order of ``model.engine.order``. Written by the scheduler alone.

    Beside decodes, prompts get what ``itl_target_s`` leaves; where it is inf, the whole step.

    A prompt whose next block another computes in the same step (see ``Memory``) is left out of
    it, and takes up the block in the next step with what was computed of it. Two that share any
    block still to be computed share the first such block of each, as tables share from their
    beginning; so it is enough to look at that one.

    A prompt whose KV is read too slowly (``lag``) comes after all others, in order among its
    like, until its reader has caught up. It gets what they leave of a step, all of it if there
    are none: its first token never waits for its KV while nobody else wants to compute. It needs
    no ageing: what it waits for is its own reader, who catches up while nothing more is computed
    and does not depend on who goes first; one who takes nothing at all ends with the call.
    """

    def __init__(
        self, settings: SchedulerSettings, costs: StepCosts, clock: Callable[[], float]
    ) -> None:
        self.tail_tokens = 0  #: missing tokens of all that each must compute itself
        self._settings = settings
        self._costs = costs
        self._clock = clock
        self._waiting: list[Sequence] = []
        self._sorted = True

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def add(self, seq: Sequence) -> None:
        self._waiting.append(seq)
        self._sorted = False
        self.tail_tokens += seq.tail

    def lag(self, seq: Sequence, behind: bool) -> None:
        """Let a waiting sequence go after the others, or in its turn again."""
        seq.lagging = behind
        self._sorted = False

    def computed(self, seq: Sequence, tokens: int) -> None:
        """So many tokens more of a sequence are computed."""
        before = seq.tail
        seq.computed += tokens
        self.tail_tokens -= before - seq.tail

    def remove(self, seq: Sequence, left: int = 0) -> None:
        """``seq`` is computed, or has ended with a tail of ``left`` tokens missing."""
        self._waiting.remove(seq)
        self.tail_tokens -= left

    def chunks(self, decodes: int) -> list[Slice]:
        """The slices to compute in a step beside so many decodes."""
        budget = self._budget(decodes)
        places = self._settings.max_running - decodes
        chunks: list[Slice] = []
        taken = set[int]()  # promised blocks that the slices begin in
        self._sort()
        for seq in self._waiting:
            if budget <= 0 or len(chunks) >= places:
                break
            if seq.computed < seq.promised:
                block = seq.blocks[seq.computed // seq.block_size]
                if block in taken:
                    continue
                taken.add(block)
            count = min(self._settings.chunk_tokens, budget, seq.missing)
            if seq.started_s is None:
                seq.started_s = self._clock()
            chunks.append(seq.next_slice(count))
            budget -= count
        return chunks

    def check(self) -> list[str]:
        """One line when the count of tokens is wrong."""
        missing = sum(seq.tail for seq in self._waiting)
        if missing == self.tail_tokens:
            return []
        return [f"{missing} tokens wait for compute, but {self.tail_tokens} are counted"]

    def _sort(self) -> None:
        """Put all in order, unless they still are."""
        order = self._settings.prefill_order
        if not self._sorted or order == "srpt":  # what is missing changes from step to step
            self._waiting.sort(
                key=lambda s: (s.lagging, urgency(order, s.rank[0], s.missing), s.rank)
            )
        self._sorted = True

    def _budget(self, decodes: int) -> int:
        """Prompt tokens for a step beside so many decodes."""
        rest = self._settings.max_tokens_per_step - decodes
        target_s = self._settings.itl_target_s
        if math.isinf(target_s) or not decodes or not self._waiting:
            return rest
        return min(rest, self._costs.allowance(decodes, target_s))
