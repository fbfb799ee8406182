"""Grammars of answers, as texts for ``baton.grammars``: from what a request asks for."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llguidance import LLMatcher, grammar_from
from pydantic import JsonValue
from pydantic_core import from_json

from baton.errors import InvalidRequest
from gateway import reasoning
from gateway.reasoning import Thinking
from gateway.tool_formats import ToolFormat
from gateway.tool_schemas import FunctionDefinition, JsonObject, StructuredOutputs

#: One grammar in llguidance's format.
Body: TypeAlias = Mapping[str, JsonValue]

#: JSON may have a space wherever it may have white space, and no more: without a bound a model
#: could write white space up to max_tokens.
_GUIDANCE: JsonObject = {"whitespace_pattern": " ?"}
_FIELD = "structured_outputs"
_ID = "<[{}]>".format  #: a token by its id


def held(schema: JsonObject) -> JsonObject:
    """A JSON schema with our rules for white space."""
    return {**schema, "x-guidance": _GUIDANCE}


def json_schema(schema: JsonObject) -> Body:
    return {"json_schema": held(schema)}


def json_object() -> Body:
    return json_schema({"type": "object"})


def exactly(ids: Sequence[int]) -> str:
    """Of an answer that is these token ids and nothing else."""
    return json.dumps({"grammars": [{"lark_grammar": f"start: {' '.join(map(_ID, ids))}"}]})


def structured(wire: StructuredOutputs, most_bytes: int) -> Body:
    """Raises InvalidRequest unless exactly one kind is given, and for what is no grammar at
    first sight."""
    given = wire.model_dump(by_alias=True, exclude_none=True)
    if len(given) != 1:
        raise InvalidRequest(
            f"'{_FIELD}' has {sorted(given)}, but must have exactly one of json, regex, choice, "
            "grammar and json_object",
            param=_FIELD,
        )
    if wire.definition is not None:
        return json_schema(_schema(wire.definition, most_bytes))
    if wire.regex is not None:
        return _only(json.loads(LLMatcher.grammar_from_regex(wire.regex)))
    if wire.choice is not None:
        if not wire.choice.root:
            raise InvalidRequest(f"'{_FIELD}.choice' is empty", param=_FIELD)
        _bound("choice", sum(map(len, wire.choice.root)), most_bytes)
        return {"lark_grammar": grammar_from("choice", json.dumps(wire.choice.root))}
    if wire.grammar is not None:
        return {"lark_grammar": _lark(wire.grammar, most_bytes)}
    return json_object()


def _bound(kind: str, characters: int, most_bytes: int) -> None:
    """What is too long anyway is not turned into a grammar first. Raises InvalidRequest."""
    if characters > most_bytes:
        raise InvalidRequest(
            f"'{_FIELD}.{kind}' has {characters} characters, but {most_bytes} bytes are allowed",
            param=_FIELD,
        )


def _schema(given: str | JsonObject, most_bytes: int) -> JsonObject:
    if not isinstance(given, str):
        return given
    _bound("json", len(given), most_bytes)
    try:
        schema = from_json(given, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"'{_FIELD}.json' is not JSON: {error}", param=_FIELD) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"'{_FIELD}.json' is {reprlib.repr(schema)}, but must be an object", param=_FIELD
        )
    return schema


def _lark(text: str, most_bytes: int) -> str:
    """GBNF becomes Lark."""
    _bound("grammar", len(text), most_bytes)
    try:
        return grammar_from("grammar", text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{_FIELD}.grammar': {error}", param=_FIELD) from None


def _only(grammar: dict[str, list[JsonObject]]) -> Body:
    (body,) = grammar["grammars"]
    return body


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls that an answer may have, or must."""

    format: ToolFormat
    functions: Sequence[FunctionDefinition]
    required: bool
    parallel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an answer is made of: thoughts, then ``body`` or ``calls``."""

    thinking: Thinking = Thinking.NO
    body: Body | None = None  #: None: any text
    calls: Calls | None = None  #: None: none is looked after
    specials: frozenset[str] = field(default_factory=frozenset)  #: tags that are special tokens

    def text(self) -> str:
        """The grammar; empty where any text will do."""
        if self.body is None and self.calls is None:
            return ""
        if self.body is not None and self.calls is None and self.thinking is Thinking.NO:
            return json.dumps({"grammars": [self.body]})
        rules = self._answer()
        start, *others = rules
        grammars: list[Body] = []
        if self.thinking is not Thinking.NO:
            start = start.replace("start:", "answer:", 1)
            others += self._thoughts()
        grammars.append({"lark_grammar": "\n".join([start, *others]) + "\n"})
        if self.body is not None:
            grammars.append({**self.body, "name": "body"})
        return json.dumps({"grammars": grammars})

    def _answer(self) -> list[str]:
        """Lark rules, the first for ``start``."""
        if (calls := self.calls) is None:
            return ["start: @body"]
        rules = calls.format.rules(calls.functions, self._literally, held)
        several = calls.format.calls(parallel=calls.parallel)
        if calls.required:
            return [f"start: {several}", *rules]
        if self.body is not None:
            return [f"start: @body | {several}", *rules]
        return [*calls.format.among_text(self._literally, parallel=calls.parallel), *rules]

    def _thoughts(self) -> list[str]:
        opening, closing = self._literally(reasoning.OPEN), self._literally(reasoning.CLOSE)
        begin = {
            Thinking.BEGUN: "thoughts GAP",
            Thinking.ASSUMED: f"{opening}? thoughts GAP",
            Thinking.MAYBE: f"({opening} thoughts GAP)?",
        }[self.thinking]
        lazy = "" if closing.startswith("<") else "[lazy]"
        return [
            f"start: {begin} answer",
            f"thoughts{lazy}: THOUGHT {closing}",
            r"THOUGHT: /(.|\n)*/",
            r"GAP: /\n{0,2}/",
        ]

    def _literally(self, text: str) -> str:
        """Lark for a tag: as text, or as the special token that it is."""
        return text if text in self.specials else json.dumps(text)
