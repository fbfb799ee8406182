"""A prompt's own log probabilities: ``echo`` with ``logprobs``.

What a model thinks of the tokens of a prompt is what it would think of them in an answer. So they
are asked for as an answer to the prompt's first token, which a grammar holds to the others: a
request of its own, before the one that answers. It takes a decode step for every token, workers
know nothing of it, and what is computed is cached for the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from baton.errors import InternalError
from baton.sampling import SamplingSpec
from gateway.detokenizer import Detokenizer, Vocabulary
from gateway.orchestrator import Deltas
from gateway.requests import ValidRequest
from gateway.transcript import Scored


def scoring(request: ValidRequest) -> ValidRequest:
    """What generates the prompt of ``request`` but for its first token."""
    asked = request.sampling
    return replace(
        request,
        request_id=f"{request.request_id}-prompt",
        prompt_ids=request.prompt_ids[:1],
        sampling=SamplingSpec(
            temperature=0.0,
            seed=asked.seed,
            max_tokens=len(request.prompt_ids) - 1,
            ignore_eos=True,  # a prompt may have one anywhere
            eos_ids=asked.eos_ids,
            grammar=request.echo_grammar,
            logprobs=asked.logprobs,
        ),
        stop=(),
        n=1,
        first_choice=0,
        echo="",
        echo_grammar="",
        generates=True,
    )


async def scored(
    deltas: Deltas, request: ValidRequest, detokenizer: Detokenizer, vocabulary: Vocabulary
) -> AsyncGenerator[Scored, None]:
    """The tokens of the prompt of ``request`` but for the first, with their places in its echo.

    Raises InternalError when a worker wrote others.
    """
    shown = 0

    def advance(token_id: int) -> None:
        nonlocal shown
        text = detokenizer.push(token_id)
        special = vocabulary.added.get(token_id, "")  # shown where the client gave ids
        if special and request.echo.startswith(special, shown):
            text += special
        shown = min(shown + len(text), len(request.echo))

    advance(request.prompt_ids[0])
    count = 1
    async with aclosing(deltas) as source:
        async for delta in source:
            for token_id, logprobs in zip(delta.token_ids, delta.logprobs, strict=True):
                if count == len(request.prompt_ids) or request.prompt_ids[count] != token_id:
                    raise InternalError(f"token {count} of the prompt came back as {token_id}")
                yield Scored(token_id, shown, logprobs)
                advance(token_id)
                count += 1
            if delta.finish is not None:
                break
    if count < len(request.prompt_ids):
        raise InternalError(f"{count} of the prompt's {len(request.prompt_ids)} tokens came back")
