"""What a chat request asks of its answer beyond text: tools, formats, thoughts."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from baton.errors import InvalidRequest, RequestError, UnsupportedParameter
from baton.grammar_limits import GrammarLimits
from baton.grammars import Grammars
from baton.sampling import SamplingSpec
from baton.settings import ReasoningFormatName, ToolFormatName
from gateway import grammar, reasoning, resume, tool_formats
from gateway.chat_template import ChatTemplate
from gateway.grammar import Body, Calls, Plan
from gateway.reply import Reply
from gateway.schemas import ChatRequest, GenerationRequest
from gateway.tokenizer import ModelTokenizer
from gateway.tool_formats import FORMATS, ToolFormat
from gateway.tool_schemas import (
    FunctionDefinition,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    StructuredOutputs,
)

#: As many as OpenAI takes.
MAX_TOOLS = 128
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a request lets its answer be."""

    tools: list[dict[str, Any]] | None  #: as the template has them; None: it knows none
    arguments: Mapping[str, Any]  #: of the template
    body: Body | None  #: what holds text
    calls: Calls | None  #: may be read, or must be made
    held: bool  #: calls follow their grammar


class Output:
    """What one model can be asked for."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        limits: GrammarLimits,
        tool_format: ToolFormatName,
        reasoning_format: ReasoningFormatName,
    ) -> None:
        self._limits = limits
        self._template = tokenizer.chat_template
        self._eos_ids = tokenizer.eos_ids
        source = self._template.source if self._template is not None else ""
        self._tools = tool_formats.detect(source) if tool_format == "auto" else FORMATS[tool_format]
        match reasoning_format:
            case "auto":
                self._reasons = reasoning.detect(source)
            case "none":
                self._reasons = None
            case named:
                self._reasons = named
        tags = [reasoning.OPEN, reasoning.CLOSE, *(self._tools.tags if self._tools else ())]
        self._specials = tokenizer.vocabulary.specials(tags)
        self._grammars = Grammars(
            tokenizer.vocabulary.tokenizer.to_str, tokenizer.vocab_size, limits
        )

    def close(self) -> None:
        self._grammars.close()

    def offer(self, wire: ChatRequest) -> Offer:
        """Raises InvalidRequest or UnsupportedParameter, naming the field."""
        body = self._body(wire)
        calls, strict = self._calls(wire)
        if calls is not None and wire.structured_outputs is not None:
            raise InvalidRequest(
                "'structured_outputs' and 'tools' do not go together; 'response_format' does",
                param="structured_outputs",
            )
        tools = None
        if calls is not None:
            tools = (
                [tool.model_dump(exclude_none=True) for tool in wire.tools.root]
                if wire.tools
                else []
            )
            self._require_told(calls)
        return Offer(
            tools=tools,
            arguments=self._arguments(wire),
            body=body,
            calls=calls,
            held=calls is not None
            and (calls.required or strict or not calls.parallel or body is not None),
        )

    def plan(self, offer: Offer, prompt: str) -> tuple[str, Reply]:
        """The grammar of an answer to the rendered prompt, empty where it is free; and how it is
        to be read."""
        thinking = reasoning.thinking(self._reasons, prompt)
        plan = Plan(
            thinking=thinking,
            body=offer.body,
            calls=offer.calls if offer.held else None,
            specials=frozenset(self._specials.values()),
        )
        calls = offer.calls
        reply = Reply(
            thinking=thinking,
            tools=calls.format if calls is not None else None,
            names=frozenset(f.name for f in calls.functions) if calls is not None else frozenset(),
            tags=self._specials,
        )
        return plan.text(), reply

    def grammar(self, wire: GenerationRequest) -> str:
        """Of a text completion."""
        body = None if wire.structured_outputs is None else self._structured(wire)
        return Plan(body=body).text()

    def exactly(self, ids: Sequence[int]) -> str:
        """The grammar of an answer that is these ids. Raises InvalidRequest for too many."""
        text = grammar.exactly(ids)
        if len(text) > self._limits.bytes:
            raise InvalidRequest(
                f"'echo' with 'logprobs' of {len(ids) + 1} tokens would take a grammar of "
                f"{len(text)} bytes, but {self._limits.bytes} are allowed (--max-grammar-bytes)",
                param="echo",
            )
        return text

    async def check(
        self, spec: SamplingSpec, generated_ids: Sequence[int], wire: GenerationRequest
    ) -> None:
        """Compile the grammar, where there is one, and follow what the client has of the answer.

        Raises InvalidRequest or UnsupportedParameter, naming the field of ``wire``.
        """
        if not spec.grammar:
            return
        if spec.ignore_eos:
            raise InvalidRequest(
                "'ignore_eos' does not go with an answer that is held to a format: that ends",
                param="ignore_eos",
            )
        with _blaming(_holding(wire)):
            await self._grammars.begin(spec.grammar, spec.eos_ids)
        if generated_ids:
            with _blaming(f"{resume.FIELD}.generated_ids"):
                await self._grammars.begin(spec.grammar, spec.eos_ids, generated_ids)

    def _body(self, wire: ChatRequest) -> Body | None:
        wanted = wire.response_format
        if wire.structured_outputs is not None:
            if isinstance(wanted, JsonObjectFormat | JsonSchemaFormat):
                raise InvalidRequest(
                    "'structured_outputs' and 'response_format' both hold the answer; give one",
                    param="structured_outputs",
                )
            return self._structured(wire)
        match wanted:
            case JsonSchemaFormat():
                return grammar.json_schema(wanted.json_schema.definition)
            case JsonObjectFormat():
                return grammar.json_object()
        return None

    def _structured(self, wire: GenerationRequest) -> Body:
        assert isinstance(wire.structured_outputs, StructuredOutputs), "asked for"
        return grammar.structured(wire.structured_outputs, self._limits.bytes)

    def _calls(self, wire: ChatRequest) -> tuple[Calls | None, bool]:
        """What may be called; and whether some function is to be called as it is defined."""
        choice = wire.tool_choice
        if wire.tools is None:
            for name in ("tool_choice", "parallel_tool_calls"):
                if getattr(wire, name) not in (None, "none", "auto"):
                    raise InvalidRequest(f"'{name}' needs 'tools'", param=name)
            return None, False
        functions = [tool.function for tool in wire.tools.root]
        _check(functions)
        if choice == "none":
            return None, False
        if isinstance(choice, NamedTool):
            functions = [f for f in functions if f.name == choice.function.name]
            if not functions:
                given = reprlib.repr(choice.function.name)
                raise InvalidRequest(
                    f"'tool_choice' names {given}, which is not in 'tools'", param="tool_choice"
                )
        required = choice == "required" or isinstance(choice, NamedTool)
        calls = Calls(
            format=self._format,
            functions=functions if required else [_as_held(f) for f in functions],
            required=required,
            parallel=wire.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
        )
        return calls, any(f.strict for f in functions)

    @property
    def _format(self) -> ToolFormat:
        if self._tools is None:
            raise UnsupportedParameter(
                "'tools' is not supported: the model's chat template has no tool calls of a known "
                "format (--tool-format names one)",
                param="tools",
            )
        return self._tools

    def _require_told(self, calls: Calls) -> None:
        """Raise UnsupportedParameter when the model would not be told what it may call."""
        if not calls.required and not (self._template and self._template.knows("tools")):
            raise UnsupportedParameter(
                "'tool_choice' 'auto' is not supported: the model's chat template does not tell it "
                "of tools; 'required' or a function's name is met all the same",
                param="tool_choice",
            )

    def _arguments(self, wire: ChatRequest) -> Mapping[str, Any]:
        given = wire.chat_template_kwargs or {}
        for name in given:
            if name in ChatTemplate.OURS or not (self._template and self._template.knows(name)):
                raise InvalidRequest(
                    f"'chat_template_kwargs' has {reprlib.repr(name)}, which the model's chat "
                    "template does not take",
                    param="chat_template_kwargs",
                )
        return given


def _holding(wire: GenerationRequest) -> str:
    """The field that its grammar comes from."""
    if wire.structured_outputs is not None:
        return "structured_outputs"
    tools = isinstance(wire, ChatRequest) and wire.tools is not None
    return "tools" if tools else "response_format"


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """What is refused in the body is a fault of ``field``."""
    try:
        yield
    except RequestError as error:
        error.param = field
        raise


def _as_held(function: FunctionDefinition) -> FunctionDefinition:
    """Its grammar where the model is free to call it: the schema if that is strict, else any
    object."""
    if function.strict:
        return function
    return function.model_copy(update={"parameters": {"type": "object"}})


def _check(functions: Sequence[FunctionDefinition]) -> None:
    if not functions:
        raise InvalidRequest("'tools' is empty", param="tools")
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(
            f"'tools' has {len(functions)} tools, but {MAX_TOOLS} are allowed", param="tools"
        )
    seen = set[str]()
    for place, function in enumerate(functions):
        name = f"'tools.{place}.function.name' is {reprlib.repr(function.name)}"
        if not _FUNCTION_NAME.fullmatch(function.name):
            raise InvalidRequest(
                f"{name}, but must be 1 to 64 letters, digits, '_' and '-'", param="tools"
            )
        if function.name in seen:
            raise InvalidRequest(f"{name}, as another", param="tools")
        seen.add(function.name)
