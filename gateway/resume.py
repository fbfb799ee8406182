"""An answer that another gateway began, and this one is to finish: what its client has of it.

The client sends its request again, whole, and ``baton_resume`` with it: the token ids that it has,
and what the first chunk told it (seed, prompt digest, workers). The answer goes on with exactly the
next token, as after the loss of a worker. Nothing here is secret or signed: who makes something up
gets what a prompt with those ids at its end would have got.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from baton.errors import AnswerFinished, InvalidRequest
from baton.generation import FinishReason, finish_reason
from baton.sampling import MAX_SEED, SamplingSpec
from gateway import schemas

#: The field of the body. A refusal names it, or a field in it.
FIELD = "baton_resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where to go on. Checked by ``check``."""

    generated_ids: tuple[int, ...]  #: the choice's tokens so far
    choice: int  #: which of the request's choices: its draws depend on it
    workers: str  #: digest of the family that generated them, empty for any


def check_seed(wire: schemas.Resume, seed: int | None) -> int:
    """The seed that the answer is drawn with. Raises InvalidRequest without one, or for another
    one than the request's own."""
    if wire.seed is None:
        raise _refused("it has no seed; the answer's first chunk told it", "seed")
    if not 0 <= wire.seed <= MAX_SEED:
        given = reprlib.repr(wire.seed)
        raise _refused(f"seed is {given}, but must be at least 0 and at most {MAX_SEED}", "seed")
    if seed is not None and seed != wire.seed:
        raise _refused(
            f"seed is {wire.seed}, but the request's own is {reprlib.repr(seed)}", "seed"
        )
    return wire.seed


def check(
    wire: schemas.Resume,
    sampling: SamplingSpec,
    *,
    prompt_digest: str,
    choices: int | None,
    most_choices: int,
    vocab_size: int,
) -> Resume:
    """Raises InvalidRequest for what cannot be the beginning of an answer to this request, and
    AnswerFinished for all of one."""
    if choices not in (None, 1):
        raise _refused(f"one choice is gone on with at a time, but n is {choices}", "choice")
    if not 0 <= wire.choice < most_choices:
        given = reprlib.repr(wire.choice)
        raise _refused(
            f"choice is {given}, but must be at least 0 and at most {most_choices - 1}", "choice"
        )
    if wire.prompt_digest is not None and wire.prompt_digest != prompt_digest:
        given = reprlib.repr(wire.prompt_digest)
        raise _refused(
            f"prompt_digest is {given}, but this prompt's is {prompt_digest!r}", "prompt_digest"
        )
    _check_ids(wire.generated_ids, sampling, vocab_size)
    return Resume(
        generated_ids=tuple(wire.generated_ids), choice=wire.choice, workers=wire.workers or ""
    )


def _check_ids(ids: Sequence[int], sampling: SamplingSpec, vocab_size: int) -> None:
    """They can have been generated, and there is more to come."""
    if len(ids) > sampling.max_tokens:
        raise _refused(
            f"it has {len(ids)} generated_ids, but max_tokens is {sampling.max_tokens}",
            "generated_ids",
        )
    for count, token_id in enumerate(ids, start=1):
        if not 0 <= token_id < vocab_size:
            given = reprlib.repr(token_id)
            raise _refused(
                f"generated_ids has token id {given}, but ids are 0 to {vocab_size - 1}",
                "generated_ids",
            )
        if (reason := finish_reason(count, token_id, sampling)) is not None:
            raise finished(reason, f"{reason.value!r}, with token {count} of {len(ids)}")


def finished(reason: FinishReason, how: str) -> AnswerFinished:
    """There is nothing to go on with: its gateway died before it could say so."""
    return AnswerFinished(
        f"'{FIELD}': the answer that it goes on with has finished: {how}",
        finish_reason=reason.value,
        param=f"{FIELD}.generated_ids",
    )


def _refused(why: str, field: str) -> InvalidRequest:
    return InvalidRequest(f"'{FIELD}': {why}", param=f"{FIELD}.{field}")
