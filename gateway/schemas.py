"""The wire types of the OpenAI endpoints, and how their mistakes read.

Only shapes are checked here. A field this build does not implement is refused by name, or
accepted at the one value that means "off". Ranges are ``SamplingSpec``'s, limits are
``requests``'s.
"""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, RootModel, ValidationError
from pydantic_core import ErrorDetails

from baton.errors import BatonError, InvalidRequest, UnsupportedParameter
from gateway.tool_schemas import (
    JsonObject,
    NamedTool,
    ResponseFormat,
    StructuredOutputs,
    ToolCalls,
    Tools,
)
from gateway.wire_type import Wire


class StreamOptions(Wire):
    include_usage: bool = False
    #: Padding against an eavesdropper who measures chunks: TLS is what there is here.
    include_obfuscation: Literal[False] | None = None


class TextPart(Wire):
    type: Literal["text"]
    text: str


class TextParts(RootModel[Annotated[list[TextPart], FailFast()]]):
    """Looked at up to the first mistake only, as every list here: bodies are long."""


class Texts(RootModel[Annotated[list[str], FailFast()]]):
    model_config = ConfigDict(strict=True)


class TokenIds(RootModel[Annotated[list[int], FailFast()]]):
    model_config = ConfigDict(strict=True)


class TokenIdLists(RootModel[Annotated[list[TokenIds], FailFast()]]):
    model_config = ConfigDict(strict=True)


class Modalities(RootModel[Annotated[list[Literal["text"]], FailFast()]]):
    model_config = ConfigDict(strict=True)


class ChatMessage(Wire):
    """One message. The fields that are only ever null come back from earlier answers."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | TextParts | None = None
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content.root)


class Messages(RootModel[Annotated[list[ChatMessage], FailFast()]]):
    model_config = ConfigDict(strict=True)


class PhaseDeadlines(Wire):
    """Seconds per phase, each at most the gateway's own; see ``baton.deadlines``."""

    queue: float | None = None
    prefill: float | None = None
    transfer: float | None = None
    first_token: float | None = None
    inter_token: float | None = None
    total: float | None = None


class Resume(Wire):
    """An answer that another gateway began; see ``gateway.resume``."""

    generated_ids: Annotated[list[int], FailFast()]
    #: As the answer's first chunk told them; only the seed cannot be done without.
    seed: int | None = None
    prompt_digest: str | None = None
    workers: str | None = None
    choice: int = 0


class SamplingRequest(Wire):
    """What every endpoint that generates takes."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    stop: str | Texts | None = None
    stream: bool | None = None
    #: As in vLLM's API: smaller goes first.
    priority: int | None = None
    deadlines: PhaseDeadlines | None = None
    #: An end-user's name: requests of one may go to one worker (--placement affinity).
    user: str | None = None


class GenerationRequest(SamplingRequest):
    """What /v1/chat/completions and /v1/completions take."""

    max_tokens: int | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    n: int | None = None
    structured_outputs: StructuredOutputs | None = None
    baton_resume: Resume | None = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast()]
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    #: Nothing is stored, so there is nothing that labels could be found by.
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    #: There is one tier.
    service_tier: Literal["auto", "default"] | None = None
    #: As ``user``: names whose requests may go to one worker.
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    functions: None = None
    function_call: Literal["none"] | None = None
    modalities: Modalities | None = None
    audio: None = None
    prediction: None = None
    verbosity: None = None
    web_search_options: None = None


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: str | TokenIds | Texts | TokenIdLists
    best_of: Literal[1] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: Literal[""] | None = None


class TokenizeRequest(Wire):
    """Body of POST /tokenize: a text, or a conversation as a chat with the same fields has it."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: JsonObject | None = None
    #: The template says where they go: nothing is added to a conversation.
    add_special_tokens: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: bool | None = None

    def as_chat(self) -> ChatRequest:
        return ChatRequest(
            model=self.model or "",
            messages=[] if self.messages is None else self.messages.root,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )


class DetokenizeRequest(Wire):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: TokenIds


R = TypeVar("R", bound=BaseModel)

#: Only "off" is accepted of these: another value asks for what this build cannot do.
_UNSUPPORTED = frozenset({"extra_forbidden", "literal_error", "none_required"})
#: Fields whose values are a choice, not an unimplemented feature.
_CHOICES = frozenset({"role", "tool_choice"})
#: Listing many mistakes would take longer than finding them.
_MOST_MISTAKES = 100


#: Objects and arrays of a body: more messages than anybody sends, read in as long as a long text.
_MOST_PARTS = 24_576
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def parse(schema: type[R], body: bytes) -> R:
    """Raises UnsupportedParameter or InvalidRequest, naming the field, for the first mistake."""
    _bound_parts(body)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MOST_MISTAKES:
            raise InvalidRequest(f"the body has {error.error_count()} mistakes") from None
        mistakes = error.errors(include_url=False)
        field = mistakes[0]["loc"][:1]
        alike = [mistake for mistake in mistakes if mistake["loc"][:1] == field]
        # Of what a field may be, that was meant which could be read furthest into.
        furthest = max(alike, key=lambda mistake: len(_place(mistake)))
        raise _explain(furthest, [m for m in alike if _place(m) == _place(furthest)]) from None


def _bound_parts(body: bytes) -> None:
    """Parts take far longer to read than text of their length. Raises InvalidRequest."""
    if _parts(body) > _MOST_PARTS and (count := _parts(_STRING.sub(b"", body))) > _MOST_PARTS:
        raise InvalidRequest(
            f"the body has {count} objects and arrays, but {_MOST_PARTS} are allowed"
        )


def _parts(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


def _explain(mistake: ErrorDetails, alternatives: list[ErrorDetails]) -> BatonError:
    kind, message = mistake["type"], mistake["msg"]
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}")
    place = _place(mistake)
    name = ".".join(str(part) for part in place)
    if not place:
        return InvalidRequest(f"the body is not a JSON object: {message}")
    if kind == "missing":
        return InvalidRequest(f"'{name}' is missing", param=name)
    given = reprlib.repr(mistake["input"])
    if kind == "extra_forbidden":
        return UnsupportedParameter(f"'{name}' is not supported", param=name)
    if kind in _UNSUPPORTED and place[-1] not in _CHOICES:
        return UnsupportedParameter(f"'{name}' is {given}, which is not supported", param=name)
    said = (m["msg"].removeprefix("Value error, ") for m in alternatives)
    wanted = " or ".join(dict.fromkeys(said)) or message
    return InvalidRequest(f"'{name}' is {given}: {wanted}", param=name)


_TYPES = frozenset(
    {
        "str",
        "TextParts",
        "Texts",
        "TokenIds",
        "TokenIdLists",
        "NamedTool",
        "NamedFunction",
        "InputItems",
        "InputMessage",
        "InputThoughts",
        "InputCall",
        "InputResult",
        "InputParts",
    }
)


def _place(mistake: ErrorDetails) -> list[int | str]:
    return [part for part in mistake["loc"] if not _names_a_type(part)]


def _names_a_type(part: int | str) -> bool:
    """pydantic adds the member of a union to the place of a mistake."""
    return isinstance(part, str) and part in _TYPES
