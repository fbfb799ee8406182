"""The grammars that requests come to: which texts are whole answers, and which begin none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from tokenizers import AddedToken

from baton.errors import InvalidRequest
from baton.grammar_limits import GrammarLimits
from baton.grammars import Grammars
from gateway.grammar import Body, Calls, Plan, json_object, json_schema, structured
from gateway.reasoning import Thinking
from gateway.tool_formats import FORMATS, FormatName
from gateway.tool_schemas import FunctionDefinition, StructuredOutputs
from tests.fakes import EOS, byte_tokenizer

SPECIALS = ("<|python_tag|>", "<tool_call>", "</think>")
NUMBER: Body = json_schema({"type": "integer", "minimum": 0, "maximum": 99})
FUNCTIONS = (
    FunctionDefinition(
        name="add",
        parameters={
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ),
    FunctionDefinition(name="stop"),
)
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
STOP = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'


class Judge:
    """Says what texts are to a plan."""

    def __init__(self, specials: Sequence[str] = ()) -> None:
        self.tokenizer = byte_tokenizer()
        self.tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
        limits = GrammarLimits(bytes=65_536, states=20_000, kept=4)
        size = self.tokenizer.get_vocab_size()
        self.grammars = Grammars(self.tokenizer.to_str, size, limits)

    async def whole(self, plan: Plan, text: str) -> bool:
        """The answer may end there. Raises InvalidRequest when it cannot begin so."""
        generated = self.tokenizer.encode(text).ids
        mask = (await self.grammars.begin(plan.text(), (EOS,), generated)).allowed(generated)
        return bool(mask[EOS // 8] >> EOS % 8 & 1)

    async def check(self, plan: Plan, whole: Sequence[str], wrong: Sequence[str]) -> None:
        for text in whole:
            assert await self.whole(plan, text), text
        for text in wrong:
            with pytest.raises(InvalidRequest, match="does not follow"):
                await self.whole(plan, text)


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    made = Judge()
    yield made
    made.grammars.close()


def calls(name: FormatName, *, required: bool = True, parallel: bool = True) -> Calls:
    return Calls(format=FORMATS[name], functions=FUNCTIONS, required=required, parallel=parallel)


async def test_json_has_a_space_at_most(judge: Judge) -> None:
    plan = Plan(body=json_schema({"type": "array", "items": {"type": "boolean"}}))
    await judge.check(plan, ["[]", "[true, false]", "[ true,false ]"], ["[  ", "[\n", "{", "[1"])


async def test_any_json_object(judge: Judge) -> None:
    await judge.check(Plan(body=json_object()), ['{"a": [1, {}]}', "{}"], ["[", "1", "null"])


@pytest.mark.parametrize(
    ("wire", "whole", "wrong"),
    [
        ({"json": {"type": "integer"}}, ["12"], ["x"]),
        ({"json": '{"type": "boolean"}'}, ["true"], ["1"]),
        ({"regex": "a/b[0-9]{2}"}, ["a/b07"], ["a/c", "ab"]),
        ({"choice": ["red", 'gr"\u00fcn\n']}, ["red", 'gr"\u00fcn\n'], ["blue"]),
        ({"grammar": 'start: "a" b+\nb: "b"'}, ["abb"], ["b"]),
        ({"grammar": 'root ::= "x" ("," "x")*'}, ["x,x"], ["xx"]),
        ({"json_object": True}, ["{}"], ["[]"]),
    ],
)
async def test_structured_outputs(
    judge: Judge, wire: dict[str, object], whole: list[str], wrong: list[str]
) -> None:
    body = structured(StructuredOutputs.model_validate(wire), 1000)
    await judge.check(Plan(body=body), whole, wrong)


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["b"]}, r"\['choice', 'regex'\]"),
        ({"choice": []}, "empty"),
        ({"json": "{"}, "not JSON"),
        ({"json": "[1]"}, "must be an object"),
        ({"grammar": "x" * 1001}, "1001 characters"),
        ({"grammar": "root ::= ("}, "grammar"),
    ],
)
def test_what_is_no_structure_is_refused(wire: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        structured(StructuredOutputs.model_validate(wire), 1000)


async def test_required_calls(judge: Judge) -> None:
    await judge.check(
        Plan(calls=calls("hermes")),
        [ADD, STOP, f"{STOP}\n{ADD}"],
        ["hello", ADD.replace("add", "sub"), ADD.replace("1", '"x"'), ADD + "!"],
    )
    await judge.check(Plan(calls=calls("hermes", parallel=False)), [ADD], [f"{ADD}\n"])
    add = '{"name": "add", "parameters": {"a": 1}}'
    await judge.check(Plan(calls=calls("llama3")), [add, f"{add}; {add}"], ["<|python_tag|>", "h"])


async def test_calls_among_text(judge: Judge) -> None:
    plan = Plan(calls=calls("hermes", required=False))
    whole = ["", "hello {<b>", f"well\n{ADD}", f"{ADD} and {STOP}", "<tool"]
    await judge.check(plan, whole, [ADD.replace("1", '"x"'), "<tool_call>x"])
    once = Plan(calls=calls("hermes", required=False, parallel=False))
    await judge.check(once, ["hello", f"well\n{ADD}"], [f"{ADD}\n", f"{ADD}{ADD}"])
    add = '{"name": "add", "parameters": {"a": 1}}'
    free = Plan(calls=calls("llama3", required=False))
    await judge.check(free, ["", "hello {", add], ["{}", add.replace("1", '"x"')])


async def test_calls_or_a_body(judge: Judge) -> None:
    plan = Plan(body=NUMBER, calls=calls("hermes", required=False))
    await judge.check(plan, ["42", ADD], ["hello", "100"])


async def test_thoughts_come_before_what_is_held(judge: Judge) -> None:
    begun = Plan(thinking=Thinking.BEGUN, body=NUMBER)
    await judge.check(
        begun, ["hm {1} <b> \n</think>7", "</think>\n\n7"], ["a</think>\n\n\n", "</think>x"]
    )
    maybe = Plan(thinking=Thinking.MAYBE, body=NUMBER)
    await judge.check(maybe, ["7", "<think>a</think>7"], ["a", "<think>a</think>x"])
    assumed = Plan(thinking=Thinking.ASSUMED, calls=calls("hermes"))
    await judge.check(assumed, [f"a</think>\n\n{ADD}", f"<think>a</think>{ADD}"], ["a</think>x"])


async def test_tags_that_are_special_tokens() -> None:
    judge, specials = Judge(SPECIALS), frozenset(SPECIALS)
    for required in (True, False):
        plan = Plan(calls=calls("hermes", required=required), specials=specials)
        await judge.check(plan, [ADD], [ADD.replace("1", '"x"')])
    thinks = Plan(thinking=Thinking.BEGUN, body=NUMBER, specials=specials)
    await judge.check(thinks, ["a</think>7"], ["a</think>x"])
    judge.grammars.close()


def test_free_answers_have_no_grammar() -> None:
    assert Plan().text() == Plan(thinking=Thinking.MAYBE).text() == ""
