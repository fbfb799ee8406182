"""The objects that the HTTP API answers with: what is rendered, and what /openapi.json says.

Named as in OpenAI's API, where it has them. ``baton`` and its like are additions of ours.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias

# Before Python 3.12 pydantic needs these, and not those of typing.
from typing_extensions import TypedDict


class ErrorDetail(TypedDict):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None  #: the field that is wrong
    code: str  #: row of the error table
    finish_reason: NotRequired[str]  #: of an answer that is over, and was to be gone on with
    phase: NotRequired[str]  #: whose deadline has passed
    retry_after: NotRequired[float]  #: seconds


class ErrorBody(TypedDict):
    """Every error before the first byte of an answer; in a stream, the data of its last event."""

    error: ErrorDetail


class StreamEvent(TypedDict):
    """One event of a stream: JSON, or at the end of one, ``[DONE]``."""

    data: str
    event: NotRequired[str]


class CachedTokens(TypedDict):
    """Of the prompt."""

    cached_tokens: int


class UsageBody(TypedDict):
    """Tokens, over all prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class OriginBody(TypedDict):
    """What it takes to go on with the answer at another gateway: see ``baton_resume``."""

    request_id: str
    seed: int
    prompt_digest: str
    workers: str


class Origin(TypedDict):
    """Of one prompt."""

    baton: OriginBody
    prompt_token_ids: NotRequired[list[int]]


#: Where the time went, of each of several prompts: see docs/timings.md.
Timings: TypeAlias = dict[str, object] | list[dict[str, object]]


class LikelyToken(TypedDict):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(LikelyToken):
    """A token that came."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    """Of one choice."""

    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Of one choice, an entry per token in each list. None: of the first token of an echo."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(TypedDict):
    """``arguments`` is JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCallBody(TypedDict):
    """What the model wants called."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(TypedDict):
    """What the model says. Without words it has calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallBody]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChatLogprobs | None
    message: AnswerMessage
    token_ids: NotRequired[list[int]]


class CompletionChoice(TypedDict):
    """One answer."""

    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None
    text: str
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    baton: OriginBody
    baton_timings: NotRequired[Timings]
    prompt_token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """Answer of POST /v1/completions. Of several prompts each has its own among ``prompts``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    baton: OriginBody
    baton_timings: NotRequired[Timings]
    prompt_token_ids: NotRequired[list[int]]
    prompts: NotRequired[list[Origin]]


class ModelBody(TypedDict):
    """The model served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """Answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelBody]


class Tokenized(TypedDict):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """Answer of POST /detokenize."""

    prompt: str


class StatusBody(TypedDict):
    """How the gateway is."""

    status: str
    reasons: NotRequired[list[str]]
