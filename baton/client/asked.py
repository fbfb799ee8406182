"""What a call asks for, and the body of its request."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict, cast

from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import InvalidRequest, UnsupportedParameter

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

#: Text, or token ids.
Prompt: TypeAlias = "str | Sequence[int]"
#: A text is one message of the user's. A message is as in OpenAI's API: ``role``, ``content``, ...
Messages: TypeAlias = "str | Sequence[Mapping[str, Json]]"


class GenerateOptions(TypedDict, total=False):
    """What both kinds of answers take, by the names that frameworks give them.

    What is not given is the gateway's to choose, which also checks ranges.
    """

    max_new_tokens: int  #: at most; as many as fit if not given
    min_new_tokens: int
    temperature: float  #: 0 is greedy
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]  #: token id to what is added to its logit
    stop: str | Sequence[str]  #: strings before which the answer ends
    ignore_eos: bool
    seed: int  #: the same seed, the same draws
    n: int  #: answers to the one prompt
    logprobs: int  #: how many of the most likely tokens are named beside each
    priority: int  #: -100 to 100; the smaller goes first
    session: str  #: requests of one conversation may go to the same workers
    response_format: Mapping[str, Json]
    deadline: float  #: seconds for all of it, gateways that die on the way included
    #: Seconds per phase: some by name, or all as one value. Each at most the gateway's own.
    deadlines: Deadlines | Mapping[str, float]


class ChatOptions(GenerateOptions, total=False):
    """What only chats take."""

    tools: Sequence[Mapping[str, Json]]
    tool_choice: str | Mapping[str, Json]
    chat_template_kwargs: Mapping[str, Json]


_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
_WIRE = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
#: Not as they are in the body: see Asked.
_OWN = frozenset({"session", "deadline", "deadlines", "logprobs", "logit_bias"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer, as any gateway may be asked for it."""

    path: str
    body: Mapping[str, Json]  #: without model and deadlines
    headers: Mapping[str, str]
    n: int
    deadlines: Deadlines  #: of the phases named in ``phases``
    phases: frozenset[str]

    def phases_left(self, elapsed: float, *, started: bool) -> dict[str, float]:
        """Seconds per phase for a request that is sent ``elapsed`` seconds after the call;
        ``started``: its first token has come."""
        left = self.deadlines.after(elapsed, started=started)
        phases = {name: getattr(left, name) for name in sorted(self.phases)}
        return {name: seconds for name, seconds in phases.items() if seconds < math.inf}


def generate(prompt: Prompt, options: GenerateOptions) -> Asked:
    """Raises UnsupportedParameter for an option that is not there, InvalidRequest for a value
    that is none."""
    _known(options, GenerateOptions)
    if not isinstance(prompt, str):
        prompt = list(prompt)
    body: dict[str, Json] = {"prompt": prompt}
    if "logprobs" in options:
        body["logprobs"] = options["logprobs"]
    return _asked(_COMPLETION, body, options)


def chat(messages: Messages, options: ChatOptions) -> Asked:
    """Raises as ``generate``."""
    _known(options, ChatOptions)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body: dict[str, Json] = {"messages": [dict(message) for message in messages]}
    if "logprobs" in options:
        body |= {"logprobs": True, "top_logprobs": options["logprobs"]}
    return _asked(_CHAT, body, options)


def _asked(path: str, body: dict[str, Json], options: GenerateOptions) -> Asked:
    given = cast(Mapping[str, Json], options)
    body |= {_WIRE.get(name, name): given[name] for name in given if name not in _OWN}
    if "logit_bias" in options:
        biases = options["logit_bias"].items()
        body["logit_bias"] = {str(token_id): bias for token_id, bias in biases}
    # Streamed and with ids, whatever the caller wants to see of it: that is what can be resumed.
    body |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"what is asked for cannot be sent: {error}") from None
    phases = _phases(options)
    return Asked(
        path=path,
        body=body,
        headers={"X-Baton-Session": options["session"]} if "session" in options else {},
        n=options.get("n", 1),
        deadlines=UNLIMITED.tightened(phases),
        phases=frozenset(phases),
    )


def _phases(options: GenerateOptions) -> dict[str, float]:
    """Seconds of each phase that is bounded."""
    named = fields(UNLIMITED)
    given = options.get("deadlines", {})
    phases = fields(given) if isinstance(given, Deadlines) else dict(given)
    for name in phases:
        if name not in named:
            raise InvalidRequest(
                f"'deadlines' names {name!r}, but phases are {', '.join(named)}", param="deadlines"
            )
    if "deadline" in options:
        phases["total"] = min(options["deadline"], phases.get("total", math.inf))
    return {name: seconds for name, seconds in phases.items() if seconds != math.inf}


def fields(deadlines: Deadlines) -> dict[str, float]:
    return {name: getattr(deadlines, name) for name in Deadlines.__dataclass_fields__}


def _known(options: Mapping[str, object], kind: type) -> None:
    known = kind.__annotations__
    for name in options:
        if name not in known:
            alike = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {alike[0]!r}?" if alike else ""
            raise UnsupportedParameter(f"{name!r} is not an option{hint}", param=name)
