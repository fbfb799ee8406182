"""From a Generation on the wire to a request that this worker's engine can take."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from baton import wire
from baton.errors import ContextLengthExceeded, InvalidRequest
from baton.generation import Generation
from baton.grammars import Constraint
from baton.v1 import common_pb2
from model.engine.sequence import SequenceRequest


def from_wire(message: common_pb2.Generation, max_model_len: int) -> Generation:
    """The generation asked for; one of millions of ids is refused before any is looked at.

    Raises ContextLengthExceeded, and what ``wire.generation_from_wire`` does.
    """
    tokens = len(message.prompt_ids) + len(message.generated_ids)
    if tokens > max_model_len:
        raise ContextLengthExceeded(
            f"prompt and generated ids are {tokens} tokens, but this worker holds at most "
            f"{max_model_len}"
        )
    return wire.generation_from_wire(message)


def to_sequence(
    generation: Generation,
    vocab_size: int,
    constraint: Constraint | None = None,
    *,
    prefix_cache: bool,
    keep: bool = False,
    receive: bool = False,
    tell: bool = False,
) -> SequenceRequest:
    """``keep``: compute and hand off; ``receive``: KV comes from elsewhere; neither: all here.
    ``tell``: say how far the prompt is.
    Without ``prefix_cache`` the request finds nobody's blocks, and nobody finds its own.

    Raises InvalidRequest for token ids outside the vocabulary, an empty prompt, or when nothing
    is left to generate.
    """
    spec = generation.sampling
    _require_inside("prompt_ids", generation.prompt_ids, vocab_size)
    _require_inside("generated_ids", generation.generated_ids, vocab_size)
    _require_inside("eos_ids", spec.eos_ids, vocab_size)
    _require_inside("logit_bias", spec.logit_bias, vocab_size)
    return SequenceRequest(
        prompt_ids=generation.prompt_ids,
        generated_ids=generation.generated_ids,
        spec=spec,
        salt=generation.cache_salt if prefix_cache else secrets.token_bytes(16),
        priority=generation.priority,
        choice_index=generation.key.choice_index,
        more_choices=generation.more_choices,
        keep=keep,
        export=keep,
        receive=receive,
        constraint=constraint,
        tell=tell,
    )


def _require_inside(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Ids are unsigned on the wire, so only the upper bound is looked at."""
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        raise InvalidRequest(
            f"{name} has token id {largest}, but the vocabulary ends at {vocab_size - 1}",
            param=name,
        )
