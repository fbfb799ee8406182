"""/v1/responses with tools, formats and thoughts, by OpenAI's client: streamed and not, and again
as the input of the next."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.fakes import MODEL, FakeWorker, answering, ids
from tests.gateways import Gateway, serving
from tests.tool_talk import ADD, CALLS, SCHEMA, STOP

TOOLS: Any = [{"type": "function", "strict": False, **tool["function"]} for tool in (ADD, STOP)]
TOOLS[1]["parameters"] = None
ARGUMENTS = '{"a": 1, "b": 2}'


class Count(BaseModel):
    n: int


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def items(response: Response) -> list[dict[str, Any]]:
    """Without ids, which are of each response its own, and what the client adds."""
    return [bare(item.to_dict(mode="json")) for item in response.output]


def bare(value: Any) -> Any:
    if isinstance(value, list):
        return [bare(one) for one in value]
    if not isinstance(value, dict):
        return value
    left_out = {"id", "call_id", "parsed", "parsed_arguments"}
    return {key: bare(one) for key, one in value.items() if key not in left_out}


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[list[Any], Response]:
    async with client.responses.stream(model=MODEL, **asked) as stream:
        events: list[Any] = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    Response.model_validate(events[-1].response.to_dict(mode="json"), strict=True)
    return events, events[-1].response


async def test_calls_and_thoughts(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"input": "hi", "tools": TOOLS}
    whole = await client.responses.create(model=MODEL, **asked)
    Response.model_validate(whole.to_dict(mode="json"), strict=True)
    thoughts, words, add, stop = items(whole)
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "First \u20ac"}]
    assert whole.output_text == "Adding." and words["status"] == "completed"
    done = {"type": "function_call", "status": "completed"}
    assert add == {**done, "name": "add", "arguments": ARGUMENTS}
    assert stop == {**done, "name": "stop", "arguments": "{}"}
    assert whole.status == "completed" and [tool.type for tool in whole.tools] == ["function"] * 2
    usage = whole.usage
    assert usage is not None
    reasoning = usage.output_tokens_details.reasoning_tokens
    assert len(ids("First \u20ac")) < reasoning < usage.output_tokens / 2

    events, final = await streamed(client, **asked)
    assert items(final) == items(whole)
    for item, kind in ((2, ARGUMENTS), (3, "{}")):
        told = [e for e in events if getattr(e, "output_index", None) == item]
        deltas = [e.delta for e in told if e.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == kind
        assert told[0].type == "response.output_item.added"
        assert [e.type for e in told[-2:]] == [
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
    thinking = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(thinking) == "First \u20ac" and len(thinking) > 3
    kinds = [e.type for e in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


async def test_what_came_back_is_sent_again(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    first = await client.responses.create(model=MODEL, input="1+1?", tools=TOOLS)
    said: Any = [{"role": "user", "content": "1+1?"}, *first.output]
    said += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        for call in first.output
        if call.type == "function_call"
    ]
    await client.responses.create(model=MODEL, input=said, tools=TOOLS)
    told = [token for token in worker.submits[-1].generation.prompt_ids if token < 256]
    calls = [
        {"name": "add", "arguments": {"a": 1, "b": 2}},
        {"name": "stop", "arguments": {}},
    ]
    written = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    expected = ids(f"1+1?Adding.{written}33")
    assert told[-len(expected) :] == expected


async def test_a_schema_holds_and_is_parsed(checkpoint: Path) -> None:
    worker = FakeWorker(script=answering('{"n": 7}'), local_prefill=True)
    async with serving(checkpoint, [worker]) as gateway:
        url = f"{gateway.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            found = await client.responses.parse(model=MODEL, input="hi", text_format=Count)
            body: Any = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
            whole = await client.responses.create(model=MODEL, input="hi", text=body)
            free: Any = {"format": {"type": "json_object"}}
            await client.responses.create(model=MODEL, input="hi", text=free)
    assert found.output_parsed == Count(n=7)
    assert whole.text is not None and whole.text.format is not None
    assert whole.text.format.to_dict()["schema"] == SCHEMA
    assert all(s.generation.sampling.grammar for s in worker.submits)


@pytest.mark.parametrize("most", [4, len(ids("<think>\nFirst \u20ac\n</think>\n\nAdd"))])
async def test_what_is_cut_says_so(client: openai.AsyncOpenAI, most: int) -> None:
    asked: Any = {"input": "hi", "tools": TOOLS, "max_output_tokens": most}
    whole = await client.responses.create(model=MODEL, **asked)
    _, final = await streamed(client, **asked)
    assert items(whole) == items(final) and whole.status == "incomplete"
    *before, last = items(whole)
    assert last["status"] == "incomplete"
    assert all(item["status"] == "completed" for item in before)


async def test_log_probabilities_of_all_tokens_come_with_the_words(
    client: openai.AsyncOpenAI,
) -> None:
    asked: Any = {"input": "hi", "include": ["message.output_text.logprobs"], "tools": TOOLS}
    whole = await client.responses.create(model=MODEL, **asked)
    _, final = await streamed(client, **asked)
    assert items(whole) == items(final)
    told = items(whole)[1]["content"][0]["logprobs"]
    assert [one["bytes"] for one in told] == [[byte] for byte in CALLS.encode()]


CALL = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}


@pytest.mark.parametrize(
    ("asked", "says", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "'tools.0.type' is 'web_search'", "tools.0.type"),
        ({"tool_choice": "required"}, "'tool_choice' needs 'tools'", "tool_choice"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "'a b'", "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "'x'", "tool_choice"),
        ({"input": [{**CALL, "arguments": "{"}]}, "'input.0.arguments' is not JSON", "input"),
        ({"input": [{**CALL, "call_id": 1}]}, "'input.0.call_id' is 1", "input.0.call_id"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "not",
            "text.format",
        ),
        ({"text": {"format": {"type": "xml"}}}, "'xml'", "text.format"),
        ({"reasoning": {"effort": "high"}}, "'reasoning' is", "reasoning"),
    ],
)
async def test_what_is_refused_is_named(
    gateway: Gateway, asked: dict[str, Any], says: str, param: str
) -> None:
    body = {"model": MODEL, "input": "hi"} | asked
    answer = await gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert says in error["message"] and error["param"] == param, error
