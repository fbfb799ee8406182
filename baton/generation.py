"""One attempt at one choice of a request, and what came of it: the values every process shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from baton.deadlines import Deadlines
from baton.sampling import SamplingSpec

#: Either way from 0; the smaller goes first.
MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Names one attempt on the wire. Anything that carries another attempt is stale."""

    request_id: str
    attempt: int
    choice_index: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """What a worker is asked to do: continue ``prompt_ids + generated_ids``.

    The two lists stay apart because penalties, min_tokens and max_tokens count from the border.
    Several choices of a request can begin as one: what they continue is computed once for all.
    """

    key: AttemptKey  #: of the first choice
    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    sampling: SamplingSpec
    deadlines: Deadlines
    priority: int = 0
    cache_salt: bytes = b""
    traceparent: str = ""
    more_choices: tuple[int, ...] = ()  #: that begin with the first

    @property
    def tokens(self) -> int:
        """Tokens whose KV is needed before the next one can be drawn."""
        return len(self.prompt_ids) + len(self.generated_ids)

    @property
    def keys(self) -> tuple[AttemptKey, ...]:
        """The attempt at each choice."""
        return (self.key, *(replace(self.key, choice_index=i) for i in self.more_choices))

    @property
    def apart(self) -> list[Generation]:
        """Each choice by itself, for a worker that cannot begin several as one."""
        return [replace(self, key=key, more_choices=()) for key in self.keys]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities of one generated token and of the most likely in its place.

    Natural logarithms, by the distribution of the model itself: before penalties, bias, grammar,
    temperature and filters. So they say what the model thinks, whatever was asked of the draw.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  #: (id, logprob), best first, then by lower id


class FinishReason(Enum):
    """Why generation ended by itself."""

    STOP = "stop"  #: an end-of-sequence id was drawn
    LENGTH = "length"  #: max_tokens were generated


def finish_reason(generation_ids: int, token_id: int, spec: SamplingSpec) -> FinishReason | None:
    """Whether the token that became number ``generation_ids`` (counted from 1) is the last."""
    if token_id in spec.eos_ids and not spec.ignore_eos:
        return FinishReason.STOP
    if generation_ids >= spec.max_tokens:
        return FinishReason.LENGTH
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one attempt went, in seconds, and what was reused."""

    queue: float = 0.0  #: waiting for the engine on the prefill side
    prefill: float = 0.0  #: engine steps that computed the prompt
    transfer: float = 0.0  #: first KV byte offered to last KV block written
    transfer_tail: float = 0.0  #: the part of it after the prompt's compute ended
    decode: float = 0.0  #: engine steps that decoded
    #: Found in the prefix cache of the worker that computed the prompt: what nobody computed.
    prefill_cached_tokens: int = 0
    decode_cached_tokens: int = 0  #: found in the decode worker's prefix cache
    prefill_instance_id: str = ""  #: where the prompt was computed
    transfer_bytes: int = 0  #: KV received


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attempt is on its way to its first decode step."""

    key: AttemptKey  #: of the first choice
    prefill_instance_id: str  #: where the prompt is computed
    computed_tokens: int = 0  #: of prompt and generated ids: those whose KV is there
    cached_tokens: int = 0  #: of these, found in a prefix cache
    total_tokens: int = 0
    kv_bytes: int = 0  #: written on the decode worker
    kv_total_bytes: int = 0  #: 0 for local prefill
    kv_layers: int = 0  #: whole there
    layers: int = 0
    transport: str = ""  #: of KV; empty for local prefill
    timings: Timings | None = None  #: once, when all KV is there
