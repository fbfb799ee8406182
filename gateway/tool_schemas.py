"""The wire types of tools, of formats that hold an answer, and of what a model says beside it.

As ``schemas``: only shapes are checked here.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, FailFast, Field, JsonValue, RootModel

from gateway.wire_type import Wire


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """pydantic reads NaN and 1e999, which no answer could say again. Raises ValueError."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("a number in it is not finite") from None
    return value


JsonObject: TypeAlias = Annotated[dict[str, JsonValue], AfterValidator(_finite)]


class FunctionCall(Wire):
    """As an earlier answer had it: ``arguments`` is JSON, as text."""

    name: str
    arguments: str


class ToolCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ToolCalls(RootModel[Annotated[list[ToolCall], FailFast()]]):
    """Looked at up to the first mistake only, as every list here."""


class FunctionDefinition(Wire):
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: FunctionDefinition


class Tools(RootModel[Annotated[list[Tool], FailFast()]]):
    """What may be called."""


class FunctionName(Wire):
    name: str


class NamedTool(Wire):
    """The one function that is to be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    type: Literal["json_object"]


class JsonSchema(Wire):
    """``strict`` makes no difference: every answer follows its schema."""

    name: str
    description: str | None = None
    definition: JsonObject = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class Choices(RootModel[Annotated[list[str], FailFast()]]):
    model_config = ConfigDict(strict=True)


class StructuredOutputs(Wire):
    """As in vLLM's API: one of them."""

    definition: str | JsonObject | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None  #: Lark, as llguidance reads it, or GBNF
    json_object: Literal[True] | None = None
