"""The wire type of POST /v1/responses, and the chat request that it means."""

from __future__ import annotations

import reprlib
from typing import Annotated, Literal

from pydantic import ConfigDict, FailFast, RootModel

from baton.errors import InvalidRequest, UnsupportedParameter
from baton.sampling import MAX_TOKENS
from gateway.schemas import ChatMessage, ChatRequest, SamplingRequest
from gateway.tool_schemas import TextFormat
from gateway.wire_type import Wire

#: The one thing that may be asked for beside the answer.
LOGPROBS = "message.output_text.logprobs"


class InputPart(Wire):
    """A piece of a message; those of earlier answers come back as they were."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[None] | None = None
    logprobs: list[object] | None = None


class InputParts(RootModel[Annotated[list[InputPart], FailFast()]]):
    model_config = ConfigDict(strict=True)


class InputMessage(Wire):
    """A message of the conversation so far."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | InputParts
    #: As an earlier answer had them.
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content.root)


class InputItems(RootModel[Annotated[list[InputMessage], FailFast()]]):
    model_config = ConfigDict(strict=True)


class Include(RootModel[Annotated[list[Literal["message.output_text.logprobs"]], FailFast()]]):
    model_config = ConfigDict(strict=True)


class TextOptions(Wire):
    format: TextFormat | None = None
    verbosity: None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


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
    tool_choice: Literal["none", "auto"] | None = None
    tools: list[None] | None = None

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
        if self.tools:
            raise UnsupportedParameter("'tools' are not supported", param="tools")
        shared = {name: getattr(self, name) for name in SamplingRequest.model_fields}
        return ChatRequest.model_construct(
            **shared,
            messages=self._messages(),
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs,
            prompt_cache_key=self.prompt_cache_key,
            safety_identifier=self.safety_identifier,
        )

    def _messages(self) -> list[ChatMessage]:
        messages = []
        if self.instructions:
            messages.append(ChatMessage(role="developer", content=self.instructions))
        if isinstance(self.input, str):
            return [*messages, ChatMessage(role="user", content=self.input)]
        if not self.input.root:
            raise InvalidRequest("'input' is empty", param="input")
        said = [ChatMessage(role=item.role, content=item.text) for item in self.input.root]
        return [*messages, *said]
