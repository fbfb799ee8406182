"""How models write tool calls: how to read them, and the grammar that has them written."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.tool_calls import CallId, HermesReader, Llama3Reader, ToolReader
from gateway.tool_schemas import FunctionDefinition, JsonObject

FormatName = Literal["hermes", "llama3"]

#: Lark for a text: as it is, or the special token that it is.
Literally = Callable[[str], str]
#: A schema as the grammar has it.
Held = Callable[[JsonObject], JsonObject]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One of ``FORMATS``."""

    reader: Callable[[Collection[str], CallId], ToolReader]
    opening: str  #: tag before a call
    closing: str  #: and behind it
    arguments: str  #: the key of the arguments
    between: str  #: calls
    tags: tuple[str, ...]  #: that may be special tokens

    def rules(
        self, functions: Sequence[FunctionDefinition], literally: Literally, held: Held
    ) -> list[str]:
        """Lark rules: ``call`` is one call of any of the functions, ``body`` it without its
        opening tag."""
        names = [f"call_{number}" for number in range(len(functions))]
        any_of = f"({' | '.join(names)})"
        if self.opening:
            rules = [
                f"call: {literally(self.opening)} body",
                f'body: "\\n" {any_of} "\\n" {literally(self.closing)}',
            ]
        else:
            rules = ["call: body", f"body: {any_of}"]
        for name, function in zip(names, functions, strict=True):
            schema = _NOTHING if function.parameters is None else function.parameters
            head = f'{{"name": {json.dumps(function.name)}, "{self.arguments}": '
            rules.append(f'{name}: {json.dumps(head)} %json {json.dumps(held(schema))} "}}"')
        return rules

    def calls(self, *, parallel: bool) -> str:
        """Lark for calls and nothing else."""
        return f"call ({json.dumps(self.between)} call)*" if parallel else "call"

    def among_text(self, literally: Literally, *, parallel: bool) -> list[str]:
        """Lark rules: ``start`` is text, calls, or both as the format has them."""
        if not self.opening:
            # What begins with a brace is a call.
            free = r"FREE: /([^{ \t\r\n](.|\n)*)?/"
            return [f"start: {self.calls(parallel=parallel)} | FREE", free]
        tag = literally(self.opening)
        lazy = "" if tag.startswith("<") else "[lazy]"  # a special token ends text by itself
        start = "start: among* ANY" if parallel else "start: among | ANY"
        return [start, "among: lead body", f"lead{lazy}: ANY {tag}", r"ANY: /(.|\n)*/"]


_NOTHING: JsonObject = {"type": "object", "additionalProperties": False}

FORMATS: dict[FormatName, ToolFormat] = {
    "hermes": ToolFormat(
        reader=HermesReader,
        opening=HermesReader.OPEN,
        closing=HermesReader.CLOSE,
        arguments="arguments",
        between="\n",
        tags=(HermesReader.OPEN, HermesReader.CLOSE),
    ),
    "llama3": ToolFormat(
        reader=Llama3Reader,
        opening="",
        closing="",
        arguments="parameters",
        between="; ",
        tags=(Llama3Reader.TAG,),
    ),
}


def detect(template: str) -> ToolFormat | None:
    """How a model writes calls, by its chat template."""
    if HermesReader.OPEN in template:
        return FORMATS["hermes"]
    if Llama3Reader.TAG in template or "ipython" in template:
        return FORMATS["llama3"]
    return None
