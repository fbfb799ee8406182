"""What steps cost, learned from the steps that ran: seconds per decode step and per prompt token.

Pure arithmetic, no clock. ``StepCosts`` is told of every step, says how many prompt tokens one
that decodes may take on, and sums up what it knows as ``Costs``, for whoever has to choose where
a prompt is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.ratio import Ratio

#: Prompt tokens in a step that decodes, while it is not known what they cost.
FIRST_TOKENS = 8

#: Steps with prompt tokens in a row after which one goes without, to measure decoding afresh ...
REMEASURE = 32
#: ... and after which it does when the batch has grown or shrunk by more than a quarter.
REMEASURE_CHANGED = 4

#: Prompt tokens after which what steps without decodes have shown counts half.
_HALF_LIFE = 2048
#: How many times cheaper a prompt token may be beside decodes than alone: what a step takes
#: beyond a decode step is a small difference of two noisy numbers.
_GAIN = 2
#: What prompts may add to a step that decodes, in decode steps, where the target leaves them less:
#: however slow a machine, and however large its batch, they get on.
_LEAST = 0.3
#: How much of a new decode step goes into the estimate.
_FRESH = 1 / 4


@dataclass(frozen=True, slots=True)
class Costs:
    """What a worker's engine takes, in seconds. 0 stands for unknown."""

    decode_step_s: float = 0.0  #: a step of the present batch without prompt tokens
    prefill_token_s: float = 0.0  #: per prompt token
    prefill_tokens: float = 0.0  #: how many tokens that rests on, the older ones counting less


def beside_s(decode_step_s: float, target_s: float) -> float:
    """Seconds that prompts may add to a decode step: what is left of ``target_s``.

    So a limit on the time between tokens decides how many tokens of prompts go into a step, as in
    Sarathi-Serve (arXiv 2403.02310); but by what steps of the present batch take, not by a number
    profiled beforehand.
    """
    return max(target_s - decode_step_s, _LEAST * decode_step_s)


class StepCosts:
    """Running estimates for one engine.

    Prompt tokens are measured apart in steps without decodes (what a prompt takes in all) and in
    steps with them (what the step takes beyond a decode step: on some devices next to nothing,
    on others more, as small matrices are computed less efficiently).
    """

    def __init__(self) -> None:
        self._decode_step_s = 0.0
        self._batch = 0  # decodes of the last step without prompt tokens
        self._alone = Ratio()
        self._mixed = Ratio()
        self._mixed_in_a_row = 0
        self._tried = FIRST_TOKENS  # most prompt tokens that a step with decodes has taken

    def observe(self, prefill_tokens: int, decodes: int, seconds: float) -> None:
        """A step took ``seconds``. One that took none teaches nothing (a mock without costs)."""
        if seconds <= 0.0:
            return
        if not prefill_tokens:
            self._observe_decodes(decodes, seconds)
        elif not decodes:
            self._alone.add(seconds, prefill_tokens, 0.5 ** (prefill_tokens / _HALF_LIFE))
        else:
            self._mixed_in_a_row += 1
            if not self._changed(decodes):
                self._mixed.add(max(0.0, seconds - self._decode_step_s), prefill_tokens)
                self._tried = max(self._tried, prefill_tokens)

    def allowance(self, decodes: int, target_s: float) -> int:
        """Prompt tokens for a step of so many decodes, as many as ``beside_s`` says.

        At least 1, however slow, so that a prompt always goes on; but 0 where the measure of a
        decode step is old, which is once in ``REMEASURE`` steps and after the batch has changed.
        At most twice what was tried before: small chunks say little about large ones.
        """
        patience = REMEASURE_CHANGED if self._changed(decodes) else REMEASURE
        if self._mixed_in_a_row >= patience:
            return 0
        token_s = self._alone.value
        if self._mixed.units:
            token_s = max(self._mixed.value, token_s / _GAIN)
        if not token_s or not self._decode_step_s:
            return FIRST_TOKENS
        tokens = beside_s(self._decode_step_s, target_s) / token_s
        return max(1, int(min(tokens, 2 * self._tried)))

    @property
    def estimate(self) -> Costs:
        """What is known now."""
        prefill = self._alone if self._alone.units else self._mixed
        return Costs(self._decode_step_s, prefill.value, prefill.units)

    def _observe_decodes(self, decodes: int, seconds: float) -> None:
        if self._changed(decodes):
            self._decode_step_s = seconds
        else:  # a hiccup of the machine counts as twice the estimate at most
            seconds = min(seconds, 2 * self._decode_step_s)
            self._decode_step_s += _FRESH * (seconds - self._decode_step_s)
        self._batch = decodes
        self._mixed_in_a_row = 0

    def _changed(self, decodes: int) -> bool:
        """Whether the batch is another one than that of the estimate, if there is one at all."""
        return abs(decodes - self._batch) * 4 > self._batch
