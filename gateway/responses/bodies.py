"""The objects that /v1/responses answers with. Named as in OpenAI's API, where it has them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias

# Before Python 3.12 pydantic needs these, and not those of typing.
from typing_extensions import TypedDict

from gateway.answers import CachedTokens, OriginBody, Timings, TokenLogprob

#: How far an item has come.
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    """A part of an output message."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprob]


class OutputMessage(TypedDict):
    """What the model says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(TypedDict):
    """Thoughts as they are."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(TypedDict):
    """What the model thinks before it answers; nobody sums it up."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[None]
    content: list[ReasoningText]


class FunctionCallItem(TypedDict):
    """What the model wants called; ``arguments`` is JSON, as the model wrote it."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = OutputMessage | ReasoningItem | FunctionCallItem


class ReasoningTokens(TypedDict):
    """Of the output."""

    reasoning_tokens: int


class InputTokens(CachedTokens):
    """Of the input. Nobody pays for what enters a cache here."""

    cache_write_tokens: Literal[0]


class ResponseUsage(TypedDict):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Incomplete(TypedDict):
    """Why a response ends early."""

    reason: Literal["max_output_tokens"]


class FreeBody(TypedDict):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaBody(TypedDict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: str
    schema: dict[str, object]
    description: str | None
    strict: bool | None


class TextBody(TypedDict):
    """How the text is to look."""

    format: FreeBody | SchemaBody


class ToolBody(TypedDict):
    """A function that may be called."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, object] | None
    strict: bool | None


class NamedBody(TypedDict):
    """The one that is to be called."""

    type: Literal["function"]
    name: str


class ResponseBody(TypedDict):
    """Answer of POST /v1/responses. Nothing of it is stored."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: TextBody
    tool_choice: Literal["none", "auto", "required"] | NamedBody
    tools: list[ToolBody]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    baton: OriginBody
    baton_timings: NotRequired[Timings]
