"""Reading an answer: whatever the split into pieces, the same thoughts, text and calls."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.json_scanner import Malformed, Mark, ObjectScanner
from gateway.reasoning import Thinking
from gateway.reply import Reader, Reply
from gateway.tags import TagFinder, Trimmer
from gateway.tool_formats import FORMATS

NAMES = frozenset({"add", "weather"})
HERMES = Reply(tools=FORMATS["hermes"], names=NAMES)
LLAMA3 = Reply(tools=FORMATS["llama3"], names=NAMES)


@dataclass
class Read:
    """All that a reader gave, put together."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)  #: id, name, arguments


def read(reply: Reply, pieces: list[str]) -> Read:
    reader, found = Reader(reply, lambda call: f"id{call}"), Read()
    for number, piece in enumerate(pieces):
        parts = reader.push(piece, last=number == len(pieces) - 1)
        found.text += parts.text
        found.reasoning += parts.reasoning
        for delta in parts.calls:
            if delta.id:
                assert delta.index == len(found.calls)
                found.calls.append((delta.id, delta.name, ""))
            call_id, name, arguments = found.calls[delta.index]
            found.calls[delta.index] = (call_id, name, arguments + delta.arguments)
    assert reader.calls == bool(found.calls)
    return found


def call(name: str = "add", arguments: str = '{"a": 1}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        '{"name": "add", "parameters": {"a": "}{"}}',
        '{"arguments": {"b": [1]}, "name": "weather"}',
        '{"name": "nobody", "arguments": {}}',
        call(),
        call("weather", '"{\\"x\\": 1}"'),
        "<tool",
        "{",
        '"name"',
        "; ",
        "\n",
        " ",
        "word",
        "\u20ac",
        "}",
    ]
)
REPLIES = st.sampled_from(
    [
        Reply(thinking=thinking, tools=tools, names=NAMES)
        for thinking in Thinking
        for tools in (None, FORMATS["hermes"], FORMATS["llama3"])
    ]
)


@given(REPLIES, st.lists(FRAGMENTS, max_size=8), st.data())
def test_any_split_reads_the_same(reply: Reply, fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    borders = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    whole = read(reply, [text])
    assert read(reply, pieces) == whole
    assert read(reply, [*text, ""]) == whole


@given(st.text("<tol_cal>/ \n{a", max_size=30))
@example("<tool_call")
def test_text_without_a_call_stays_as_it_is(text: str) -> None:
    """No beginning of a tag is lost, nor is any given out that becomes one."""
    assert read(HERMES, [*text, ""]).text == text


def test_a_piece_of_a_tag_is_never_shown() -> None:
    reader = Reader(HERMES, lambda call: f"id{call}")
    shown = "".join(reader.push(char).text for char in "sure. " + call() + "\n" + call("weather"))
    assert shown == "sure."


def test_arguments_are_passed_on_as_they_are_written() -> None:
    reader = Reader(HERMES, lambda call: f"id{call}")
    text = call(arguments='{"a": "\\u20ac } <b>"}')
    pieces = [delta for char in text for delta in reader.push(char).calls]
    assert (pieces[0].id, pieces[0].name) == ("id0", "add")
    assert len(pieces) > 10
    assert json.loads("".join(p.arguments for p in pieces)) == {"a": "\u20ac } <b>"}


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (call(), "", [("add", '{"a": 1}')]),
        (
            "a\n" + call() + "\n" + call("weather", "{}") + "\nb",
            "ab",
            [("add", '{"a": 1}'), ("weather", "{}")],
        ),
        (call("nobody"), call("nobody"), []),
        ("<tool_call>none of it", "<tool_call>none of it", []),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
        (
            '<tool_call>{"arguments": {"a":2}, "name": "add"}',
            "",
            [("add", '{"a":2}')],
        ),
        (call("weather", '"{\\"x\\": 1}"'), "", [("weather", '{"x": 1}')]),
        ('<tool_call>{"name": "add", "arguments": {"a": ', "", [("add", '{"a": ')]),
        ('<tool_call>{"name": "ad', '<tool_call>{"name": "ad', []),
        ("<tool_call>x" + call(), "<tool_call>x", [("add", '{"a": 1}')]),
    ],
)
def test_hermes(text: str, shown: str, calls: list[tuple[str, str]]) -> None:
    found = read(HERMES, [text])
    assert found.text == shown
    assert [(name, arguments) for _, name, arguments in found.calls] == calls
    assert [call_id for call_id, _, _ in found.calls] == [f"id{n}" for n in range(len(calls))]


@pytest.mark.parametrize(
    ("text", "shown", "names"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', "", ["add"]),
        ('<|python_tag|>{"name": "add", "parameters": {}}', "", ["add"]),
        ('{"name": "add", "parameters": {}}; {"name": "weather"}', "", ["add", "weather"]),
        ('{"type": "function", "name": "add", "parameters": {}}', "", ["add"]),
        ('{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
        ('{"name": "add", "parameters": {}} and more', "and more", ["add"]),
        ("<|python_tag|>print(1)", "print(1)", []),
        (' {"a"', ' {"a"', []),
        ("hello {", "hello {", []),
    ],
)
def test_llama3(text: str, shown: str, names: list[str]) -> None:
    found = read(LLAMA3, [text])
    assert (found.text, [name for _, name, _ in found.calls]) == (shown, names)


@pytest.mark.parametrize(
    ("thinking", "text", "thought", "answer"),
    [
        (Thinking.NO, "<think>a</think>b", "", "<think>a</think>b"),
        (Thinking.MAYBE, "<think>\na\n</think>\n\nb", "a", "b"),
        (Thinking.MAYBE, "b </think>", "", "b </think>"),
        (Thinking.MAYBE, " <thi", "", " <thi"),
        (Thinking.ASSUMED, "a</think>b", "a", "b"),
        (Thinking.ASSUMED, "<think>a</think>b", "a", "b"),
        (Thinking.BEGUN, "a <b> </thin", "a <b> </thin", ""),
        (Thinking.BEGUN, "a</think>\n<think>b", "a", "<think>b"),
    ],
)
def test_thoughts(thinking: Thinking, text: str, thought: str, answer: str) -> None:
    found = read(Reply(thinking=thinking), [text])
    assert (found.reasoning, found.text) == (thought, answer)


def test_calls_behind_thoughts_are_calls_and_within_them_are_thoughts() -> None:
    reply = Reply(thinking=Thinking.BEGUN, tools=FORMATS["hermes"], names=NAMES)
    found = read(reply, [call() + "</think>\n" + call("weather")])
    assert found.reasoning == call()
    assert [name for _, name, _ in found.calls] == ["weather"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 1]), st.booleans())
def test_the_scanner_ends_with_the_object(value: object, indent: int | None, plain: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    scanner = ObjectScanner()
    events = [scanner.feed(char) for char in text]
    assert [Mark.OBJECT_END in found for found in events].index(True) == len(text) - 1


@pytest.mark.parametrize("text", ["[", "{1", '{"a" 1', '{"a": x', '{"a": 1, }', '{"\\x": 1', "{,"])
def test_the_scanner_refuses_what_is_no_object(text: str) -> None:
    scanner = ObjectScanner()
    with pytest.raises(Malformed):
        for char in text:
            scanner.feed(char)


@given(st.lists(st.text("<ab>", max_size=4)))
def test_the_tag_is_found_wherever_it_is_cut(parts: list[str]) -> None:
    finder, text, before = TagFinder("<ab>"), "".join(parts), ""
    for number, part in enumerate(parts):
        shown, behind = finder.push(part)
        before += shown
        if behind is not None:
            assert before == text.partition("<ab>")[0]
            assert behind + "".join(parts[number + 1 :]) == text.partition("<ab>")[2]
            return
    assert before + finder.flush() == text
    assert "<ab>" not in text


@given(st.lists(st.text(" \na", max_size=4)))
def test_white_space_at_the_end_is_held_back(parts: list[str]) -> None:
    trimmer, shown = Trimmer(leading=True), ""
    for part in parts:
        shown += trimmer.push(part)
        assert shown == shown.rstrip()
    assert shown == "".join(parts).strip()
