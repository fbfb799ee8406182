"""What a request asks of the sampler. The sampler itself is ``model.sampling``."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_TOKENS = 2**31 - 1
#: Most likely tokens told with each one, as many as OpenAI tells.
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How the next token is drawn, and when generation ends.

    Everything is counted from the border between prompt and generated ids, so a replayed
    attempt (prompt + generated so far) needs no other state.

    Raises InvalidRequest, naming value and limit, when a field is out of range.
    """

    temperature: float = 1.0  #: 0 is greedy
    top_k: int = 0  #: keep the k most likely; 0 is off
    top_p: float = 1.0  #: keep the smallest set whose mass reaches p, the crossing token included
    min_p: float = 0.0  #: drop what is less likely than min_p times the most likely
    seed: int = 0  #: the draw is a function of (seed, position, choice index)
    presence_penalty: float = 0.0  #: subtracted once from ids already generated
    frequency_penalty: float = 0.0  #: subtracted per occurrence among the generated ids
    repetition_penalty: float = 1.0  #: divides (or multiplies) logits of ids in prompt or output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  #: added to single logits
    max_tokens: int = 16  #: generated in all, over every attempt
    min_tokens: int = 0  #: end-of-sequence ids are masked until so many are generated
    ignore_eos: bool = False
    eos_ids: tuple[int, ...] = ()  #: ids that end the sequence (counted, not shown)
    grammar: str = ""  #: holds the output, see ``baton.grammars``; empty is free
    #: Tell the log probability of each token, and of so many of the most likely; None tells none.
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("seed", self.seed, 0, MAX_SEED)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _within("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias[{token}]", bias, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a value outside [low, high], or (low, high] when ``open_low``; NaN is outside."""
    good = low <= value <= high and not (open_low and value == low)
    if not good:
        raise InvalidRequest(
            f"{name} is {reprlib.repr(value)}, but must be "
            f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}",
            param=name,
        )
