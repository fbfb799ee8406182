"""The wire type of POST /v1/responses, and the chat request that it means."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import ConfigDict, FailFast, Field, RootModel

from baton.errors import InvalidRequest, RequestError
from baton.sampling import MAX_TOKENS
from gateway.responses import conversation
from gateway.responses.input import InputItems
from gateway.schemas import ChatMessage, ChatRequest, SamplingRequest
from gateway.tool_schemas import (
    FunctionDefinition,
    FunctionName,
    JsonObject,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    NamedTool,
    TextFormat,
    Tool,
    Tools,
)
from gateway.wire_type import Wire

#: Fields of the chat request that are others here.
_NAMES = {"messages": "input", "response_format": "text.format"}

#: The one thing that may be asked for beside the answer.
LOGPROBS = "message.output_text.logprobs"


class Include(RootModel[Annotated[list[Literal["message.output_text.logprobs"]], FailFast()]]):
    model_config = ConfigDict(strict=True)


class SchemaFormat(Wire):
    """As of a chat, but flat. ``strict`` makes no difference: every answer follows its schema."""

    type: Literal["json_schema"]
    name: str
    description: str | None = None
    definition: JsonObject = Field(alias="schema")
    strict: bool | None = None

    def as_chat(self) -> JsonSchemaFormat:
        schema = JsonSchema(
            name=self.name,
            description=self.description,
            schema=self.definition,
            strict=self.strict,
        )
        return JsonSchemaFormat(type="json_schema", json_schema=schema)


class TextOptions(Wire):
    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class FunctionTool(Wire):
    """As of a chat, but flat."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    def as_chat(self) -> Tool:
        function = FunctionDefinition(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            strict=self.strict,
        )
        return Tool(type="function", function=function)


class FunctionTools(RootModel[Annotated[list[FunctionTool], FailFast()]]):
    model_config = ConfigDict(strict=True)


class NamedFunction(Wire):
    """The one function that is to be called."""

    type: Literal["function"]
    name: str

    def as_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionName(name=self.name))


class ResponsesRequest(SamplingRequest):
    """Body of POST /v1/responses."""

    input: str | InputItems
    instructions: str | None = None
    max_output_tokens: int | None = None
    include: Include | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    #: Nothing is stored: who goes on sends the whole conversation.
    store: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    background: Literal[False] | None = None
    max_tool_calls: None = None
    parallel_tool_calls: bool | None = None
    reasoning: None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    tools: FunctionTools | None = None
    chat_template_kwargs: JsonObject | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.include is not None and LOGPROBS in self.include.root

    def as_chat(self) -> ChatRequest:
        """The same as a chat request. Raises InvalidRequest, naming the field as it is here."""
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequest(
                f"'top_logprobs' needs 'include' to have {LOGPROBS!r}", param="top_logprobs"
            )
        most = self.max_output_tokens
        if most is not None and not 1 <= most <= MAX_TOKENS:
            raise InvalidRequest(
                f"max_output_tokens is {reprlib.repr(most)}, but must be at least 1 and at most "
                f"{MAX_TOKENS}",
                param="max_output_tokens",
            )
        wanted = self.text.format if self.text is not None else None
        choice = self.tool_choice
        tools = [tool.as_chat() for tool in self.tools.root] if self.tools is not None else []
        shared = {name: getattr(self, name) for name in SamplingRequest.model_fields}
        return ChatRequest.model_construct(
            **shared,
            messages=self._messages(),
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs,
            prompt_cache_key=self.prompt_cache_key,
            safety_identifier=self.safety_identifier,
            response_format=wanted.as_chat() if isinstance(wanted, SchemaFormat) else wanted,
            tools=Tools(tools) if tools else None,
            tool_choice=choice.as_chat() if isinstance(choice, NamedFunction) else choice,
            parallel_tool_calls=self.parallel_tool_calls if tools else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _messages(self) -> list[ChatMessage]:
        messages = []
        if self.instructions:
            messages.append(ChatMessage(role="developer", content=self.instructions))
        if isinstance(self.input, str):
            return [*messages, ChatMessage(role="user", content=self.input)]
        if not self.input.root:
            raise InvalidRequest("'input' is empty", param="input")
        return [*messages, *conversation.messages(self.input.root)]


@contextmanager
def named_as_here() -> Iterator[None]:
    """What is wrong with the chat request is the fault of the field that it was made of."""
    try:
        yield
    except RequestError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise
