"""The wire types of what a response answers: messages, and items of earlier responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, FailFast, RootModel, Tag

from gateway.wire_type import Wire

_Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputPart(Wire):
    """A piece of a message; those of earlier answers come back as they were."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[None] | None = None
    logprobs: list[object] | None = None


class InputParts(RootModel[Annotated[list[InputPart], FailFast()]]):
    model_config = ConfigDict(strict=True)


class ThoughtPart(Wire):
    type: Literal["reasoning_text"]
    text: str


class ThoughtParts(RootModel[Annotated[list[ThoughtPart], FailFast()]]):
    model_config = ConfigDict(strict=True)


class InputMessage(Wire):
    """A message of the conversation so far."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | InputParts
    #: As an earlier answer had them.
    id: str | None = None
    status: _Status | None = None
    phase: None = None

    @property
    def text(self) -> str:
        return _text(self.content)


class InputThoughts(Wire):
    """What the model thought, as an earlier response told it."""

    type: Literal["reasoning"]
    content: ThoughtParts | None = None
    #: Nobody sums up here.
    summary: list[None] | None = None
    encrypted_content: None = None
    id: str | None = None
    status: _Status | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content.root) if self.content else ""


class InputCall(Wire):
    """What the model wanted called."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status | None = None


class InputResult(Wire):
    """What came of it."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | InputParts
    id: str | None = None
    status: _Status | None = None

    @property
    def text(self) -> str:
        return _text(self.output)


_KINDS = {
    "reasoning": "InputThoughts",
    "function_call": "InputCall",
    "function_call_output": "InputResult",
}


def _kind(item: Any) -> str:
    """A message need not say that it is one."""
    kind = item.get("type") if isinstance(item, dict) else None
    return _KINDS.get(kind, "InputMessage") if isinstance(kind, str) else "InputMessage"


InputItem: TypeAlias = Annotated[
    Annotated[InputMessage, Tag("InputMessage")]
    | Annotated[InputThoughts, Tag("InputThoughts")]
    | Annotated[InputCall, Tag("InputCall")]
    | Annotated[InputResult, Tag("InputResult")],
    Discriminator(_kind),
]


class InputItems(RootModel[Annotated[list[InputItem], FailFast()]]):
    model_config = ConfigDict(strict=True)


def _text(content: str | InputParts) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content.root)
