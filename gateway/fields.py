"""What single fields of a wire request mean, and how much each may ask for. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from baton.errors import InvalidRequest
from baton.generation import MAX_PRIORITY
from baton.sampling import MAX_LOGPROBS
from gateway import resume
from gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest, Texts, TokenIds

#: Answers to one request, over all its prompts: as many as OpenAI gives to one.
MAX_CHOICES = 128
#: Most likely tokens told with each token of a text completion, as OpenAI has it.
MAX_COMPLETION_LOGPROBS = 5
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024


def choices(wire: GenerationRequest) -> int:
    """Answers to each prompt."""
    given = 1 if wire.n is None else wire.n
    if not 1 <= given <= MAX_CHOICES:
        raise InvalidRequest(
            f"n is {reprlib.repr(given)}, but must be at least 1 and at most {MAX_CHOICES}",
            param="n",
        )
    return given


def prompts(wire: CompletionRequest) -> Sequence[str | list[int]]:
    """Each prompt meant. Raises InvalidRequest for more than may be answered together."""
    match wire.prompt:
        case str():
            return [wire.prompt]
        case TokenIds():
            return [wire.prompt.root]
    prompts = [one if isinstance(one, str) else one.root for one in wire.prompt.root]
    n = choices(wire)
    if len(prompts) * n > MAX_CHOICES:
        raise InvalidRequest(
            f"'prompt' has {len(prompts)} prompts and n is {n}, together {len(prompts) * n} "
            f"answers, but {MAX_CHOICES} are allowed",
            param="prompt",
        )
    if len(prompts) > 1 and wire.baton_resume is not None:
        raise InvalidRequest(
            f"'{resume.FIELD}': one prompt is gone on with at a time, but there are {len(prompts)}",
            param=resume.FIELD,
        )
    return prompts


def usage(wire: GenerationRequest) -> tuple[bool, bool]:
    """Whether the last chunk tells it; and whether every other does, too."""
    asked = wire.stream_options
    if asked is None:
        return False, False
    if not wire.stream:
        raise InvalidRequest("'stream_options' needs 'stream'", param="stream_options")
    if asked.continuous_usage_stats and not asked.include_usage:
        raise InvalidRequest(
            "'stream_options.continuous_usage_stats' needs 'include_usage'", param="stream_options"
        )
    return asked.include_usage, asked.continuous_usage_stats


def only_echoes(wire: GenerationRequest) -> bool:
    """Whether it may do without a token of its own."""
    return isinstance(wire, CompletionRequest) and bool(wire.echo) and wire.baton_resume is None


def logprobs(wire: GenerationRequest) -> int | None:
    """Of how many of the most likely tokens; None for none at all, not even the token's own."""
    match wire:
        case ChatRequest():
            name, asked, most = "top_logprobs", wire.top_logprobs, MAX_LOGPROBS
            if asked and not wire.logprobs:
                raise InvalidRequest("'top_logprobs' needs 'logprobs'", param="top_logprobs")
            given = (asked or 0) if wire.logprobs else None
        case CompletionRequest():
            name, given, most = "logprobs", wire.logprobs, MAX_COMPLETION_LOGPROBS
        case _:
            return None
    if given is not None and not 0 <= given <= most:
        raise InvalidRequest(
            f"{name} is {reprlib.repr(given)}, but must be at least 0 and at most {most}",
            param=name,
        )
    return given


def session(wire: GenerationRequest) -> str:
    """The narrowest of the names that the request gives of who it belongs to."""
    names = [wire.user]
    if isinstance(wire, ChatRequest):
        names = [wire.prompt_cache_key, wire.user, wire.safety_identifier]
    return next((name for name in names if name), "")


def priority(wire: int | None) -> int | None:
    if wire is not None and abs(wire) > MAX_PRIORITY:
        raise InvalidRequest(
            f"priority is {reprlib.repr(wire)}, but must be at least -{MAX_PRIORITY} and at most "
            f"{MAX_PRIORITY}",
            param="priority",
        )
    return wire


def stops(stop: str | Texts | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop.root if stop is not None else ())
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"'stop' has {len(stops)} strings, but {MAX_STOPS} are allowed", param="stop"
        )
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"'stop' has a string of {len(text)} characters, but must be 1 to "
                f"{MAX_STOP_CHARACTERS}",
                param="stop",
            )
    return stops
