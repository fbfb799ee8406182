"""Tools, formats and thoughts through the gateway: what workers are asked, what clients see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import DecodeLost
from tests.fakes import (
    EOS,
    MODEL,
    FakeSession,
    FakeWorker,
    Submitted,
    answering,
    ids,
    write_checkpoint,
)
from tests.gateways import Gateway, events, serving
from tests.tool_talk import ADD, CALLS, JSON_SCHEMA, STOP


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template knows neither tools nor thoughts."""
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def message(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["message"]
    return found


def gathered(data: list[str]) -> tuple[dict[str, Any], str | None]:
    """A stream's deltas put together as a message, and why it ended."""
    told: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = None
    for line in data[:-1]:
        for choice in json.loads(line)["choices"]:
            delta = choice["delta"]
            finish = choice["finish_reason"] or finish
            for key in ("content", "reasoning_content"):
                told[key] += delta.get(key) or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(told["tool_calls"])
                    told["tool_calls"].append(
                        {**call, "function": {**call["function"], "arguments": ""}}
                    )
                made = told["tool_calls"][call["index"]]["function"]
                made["arguments"] += call["function"]["arguments"]
    for call in told["tool_calls"]:
        del call["index"]
    return told, finish


async def test_calls_and_thoughts_whole_and_streamed(gateway: Gateway) -> None:
    body = {"tools": [ADD, STOP], "seed": 5}
    answer = await gateway.chat(**body)
    whole = message(answer)
    assert whole["content"] == "Adding."
    assert whole["reasoning_content"] == "First \u20ac"
    functions = [call["function"] for call in whole["tool_calls"]]
    assert [f["name"] for f in functions] == ["add", "stop"]
    assert json.loads(functions[0]["arguments"]) == {"a": 1, "b": 2}
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    data = await events(await gateway.chat(**body, stream=True))
    told, finish = gathered(data)
    assert finish == "tool_calls"
    assert told == {key: whole[key] for key in told}
    assert sum("tool_calls" in line and '"arguments":"' in line for line in data) > 10
    assert not any("tool_call>" in line or "think>" in line for line in data)


async def test_a_call_goes_on_at_another_worker_as_if_nothing_had_happened(
    checkpoint: Path,
) -> None:
    body = {"tools": [ADD, STOP], "seed": 5, "stream": True}
    cut = ids(CALLS).index(ids(":")[0]) + 8

    async def lost(session: FakeSession, submitted: Submitted) -> None:
        """Breaks off twice: within thoughts, and within a call."""
        begun = len(submitted.generation.generated_ids)
        answer = [*ids(CALLS), EOS]
        until = {0: 12, 12: cut}.get(begun)
        if until is None:
            await answering(CALLS)(session, submitted)
            return
        session.tokens(submitted.key, begun, answer[begun:until])
        session.fail(submitted.key, DecodeLost("gone"))

    workers = [FakeWorker(script=lost, local_prefill=True) for _ in range(2)]
    async with serving(checkpoint, workers) as gateway:
        broken, _ = gathered(await events(await gateway.chat(**body)))
        assert gateway.metric("baton_migrations_total", reason="decode_lost") == 2
    async with serving(
        checkpoint, [FakeWorker(script=answering(CALLS), local_prefill=True)]
    ) as same:
        assert broken == gathered(await events(await same.chat(**body)))[0]


async def test_a_client_goes_on_within_a_call(gateway: Gateway) -> None:
    body = {"tools": [ADD, STOP], "stream": True, "return_token_ids": True, "seed": 5}
    data = await events(await gateway.chat(**body))
    whole = gathered(data)[0]
    origin = json.loads(data[0])["baton"]
    del origin["request_id"]
    for cut in range(4, len(data) - 4, 7):
        tokens = [
            t for line in data[:cut] for t in json.loads(line)["choices"][0].get("token_ids", ())
        ]
        resume = {**origin, "generated_ids": tokens}
        rest = await events(await gateway.chat(**body, baton_resume=resume))
        assert gathered([*data[:cut], *rest])[0] == whole
    refused = await gateway.chat(tools=[ADD, STOP], baton_resume=resume)
    assert refused.status_code == 400
    assert "as a stream" in refused.text


async def test_conversations_with_calls_are_told_to_the_template(
    gateway: Gateway, worker: FakeWorker
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    body = {
        "model": MODEL,
        "messages": messages,
        "tools": [ADD],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    answer = await gateway.client.post("/v1/chat/completions", json=body)
    assert "reasoning_content" not in message(answer), "the prompt ends with </think>"
    told = bytes(token for token in worker.submits[0].generation.prompt_ids if token < 256)
    expected = (
        json.dumps(ADD) + '1+1?<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>2'
    )
    assert [*told] == [*ids(expected), *ids("<think></think>")]


@pytest.mark.parametrize(
    ("body", "held"),
    [
        ({"tools": [ADD]}, False),
        ({"tools": [ADD], "tool_choice": "none"}, False),
        ({"tools": [ADD], "tool_choice": "required"}, True),
        (
            {
                "tools": [ADD, STOP],
                "tool_choice": {"type": "function", "function": {"name": "stop"}},
            },
            True,
        ),
        ({"tools": [ADD], "parallel_tool_calls": False}, True),
        ({"tools": [{**ADD, "function": {**ADD["function"], "strict": True}}]}, True),
        ({"tools": [ADD], "response_format": JSON_SCHEMA}, True),
        ({"response_format": JSON_SCHEMA}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"structured_outputs": {"choice": ["a", "b"]}}, True),
    ],
)
async def test_what_holds_an_answer_travels_with_every_attempt(
    gateway: Gateway, worker: FakeWorker, body: dict[str, Any], held: bool
) -> None:
    assert (await gateway.chat(**body, n=2)).status_code == 200
    [submitted] = worker.submits
    assert bool(submitted.generation.sampling.grammar) == held


async def test_completions_can_be_held_too(gateway: Gateway, worker: FakeWorker) -> None:
    assert (await gateway.complete(structured_outputs={"regex": "a+"})).status_code == 200
    assert "a+" in worker.submits[0].generation.sampling.grammar


async def test_each_of_several_prompts_is_held(gateway: Gateway, worker: FakeWorker) -> None:
    answer = await gateway.complete(["a", "b", "c"], n=2, structured_outputs={"regex": "a+"})
    assert answer.status_code == 200, answer.text
    assert len({s.generation.prompt_ids for s in worker.submits}) == 3
    assert all("a+" in s.generation.sampling.grammar for s in worker.submits)


async def test_log_probabilities_come_with_calls_and_thoughts(gateway: Gateway) -> None:
    body = {"tools": [ADD, STOP], "seed": 5, "logprobs": True}
    [whole] = (await gateway.chat(**body)).json()["choices"]
    told = whole["logprobs"]["content"]
    assert [one["bytes"] for one in told] == [[byte] for byte in CALLS.encode()]
    data = await events(await gateway.chat(**body, stream=True))
    parts = [choice["logprobs"] for line in data[:-1] for choice in json.loads(line)["choices"]]
    assert [one for part in parts if part for one in part["content"]] == told
    assert gathered(data)[0]["tool_calls"] == whole["message"]["tool_calls"]


async def test_a_repeated_request_gets_the_same_calls(gateway: Gateway, worker: FakeWorker) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "tools": [ADD, STOP]}
    for stream in (False, True):
        first, second = [
            await gateway.client.post(
                "/v1/chat/completions",
                json={**asked, "stream": stream},
                headers={"Idempotency-Key": str(stream)},
            )
            for _ in range(2)
        ]
        assert first.text == second.text and "call_" in first.text
        assert second.headers["idempotent-replayed"] == "true"
    assert len(worker.submits) == 2


async def test_a_conversation_with_calls_can_be_counted(gateway: Gateway) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    count = (await gateway.client.post("/tokenize", json={"messages": messages})).json()["count"]
    chat = await gateway.chat(messages=messages)
    assert chat.json()["usage"]["prompt_tokens"] == count
    messages[1]["role"] = "user"
    refused = await gateway.client.post("/tokenize", json={"messages": messages})
    assert refused.status_code == 400 and "'messages.1.tool_call_id'" in refused.text


@pytest.mark.parametrize(
    "fields", [{"tools": [ADD, STOP]}, {"chat_template_kwargs": {"enable_thinking": False}}, {}]
)
async def test_tokens_are_counted_as_a_chat_has_them(
    gateway: Gateway, worker: FakeWorker, fields: dict[str, Any]
) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], **fields}
    found = (await gateway.client.post("/tokenize", json=asked)).json()
    await gateway.chat(**fields)
    assert tuple(found["tokens"]) == worker.submits[0].generation.prompt_ids
    refused = await gateway.client.post("/tokenize", json={"prompt": "hi", **fields})
    assert refused.status_code == (400 if fields else 200)
    assert all(f"'{name}' needs 'messages'" in refused.text for name in fields)


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


#: Over a good chat request; words that the message must have.
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"tools": []}, ["'tools' is empty"]),
    ({"tools": [named("a b")]}, ["tools.0.function.name", "'a b'"]),
    ({"tools": [STOP, STOP]}, ["tools.1.function.name", "as another"]),
    ({"tools": [STOP] * 129}, ["129", "128"]),
    ({"tools": [{"type": "code"}]}, ["tools"]),
    ({"tool_choice": "required"}, ["'tool_choice' needs 'tools'"]),
    ({"tools": [ADD], "tool_choice": "any"}, ["tool_choice", "'any'"]),
    ({"tools": [ADD], "tool_choice": named("sub")}, ["'sub'", "not in 'tools'"]),
    ({"tools": [ADD], "structured_outputs": {"regex": "a"}}, ["do not go together"]),
    ({"response_format": {"type": "xml"}}, ["response_format", "xml"]),
    ({"response_format": {"type": "json_schema"}}, ["json_schema", "missing"]),
    (
        {"response_format": {**JSON_SCHEMA, "json_schema": {"name": "x", "schema": {"not": {}}}}},
        ["not"],
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": ["x" * 70_000]}},
            }
        },
        ["65536"],
    ),
    ({"response_format": JSON_SCHEMA, "structured_outputs": {"regex": "a"}}, ["give one"]),
    ({"structured_outputs": {"regex": "("}}, ["unclosed"]),
    ({"structured_outputs": {"whitespace_pattern": " "}}, ["whitespace_pattern", "not supported"]),
    ({"response_format": JSON_SCHEMA, "ignore_eos": True}, ["ignore_eos"]),
    ({"chat_template_kwargs": {"enable_magic": True}}, ["'enable_magic'"]),
    ({"chat_template_kwargs": {"messages": []}}, ["'messages'"]),
    ({"messages": [{"role": "tool", "content": "x"}]}, ["'tool_call_id'"]),
    (
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        ["tool_call_id", "'user'"],
    ),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "1"}]}, ["'user'"]),
    ({"messages": [{"role": "assistant"}]}, ["messages.0.content", "missing"]),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{"}}
                    ],
                }
            ]
        },
        ["tool_calls.0.function.arguments", "not JSON"],
    ),
]


async def test_what_cannot_be_met_is_refused_by_name(gateway: Gateway, worker: FakeWorker) -> None:
    good = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    for wrong, words in REFUSED:
        answer = await gateway.client.post("/v1/chat/completions", json={**good, **wrong})
        assert answer.status_code == 400, (wrong, answer.text)
        told = answer.json()["error"]["message"]
        assert all(word in told for word in words), told
    resume = {"generated_ids": ids("xy"), "seed": 1}
    answer = await gateway.chat(structured_outputs={"regex": "ab"}, baton_resume=resume)
    assert answer.status_code == 400
    assert "generated token 0" in answer.text
    assert answer.json()["error"]["param"] == "baton_resume.generated_ids"
    answer = await gateway.chat(structured_outputs={"regex": "("})
    assert answer.json()["error"]["param"] == "structured_outputs"
    assert not worker.submits


async def test_a_template_without_tools(plain_checkpoint: Path) -> None:
    """A format can be named: then calls can be demanded, though the model is not told of them."""
    worker = FakeWorker(local_prefill=True)
    async with serving(plain_checkpoint, [worker]) as gateway:
        refused = await gateway.chat(tools=[ADD])
        assert refused.status_code == 400
        assert "--tool-format" in refused.text
    call = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
    worker = FakeWorker(script=answering(call), local_prefill=True)
    async with serving(plain_checkpoint, [worker], tool_format="llama3") as gateway:
        refused = await gateway.chat(tools=[ADD])
        assert refused.status_code == 400
        assert "does not tell it of tools" in refused.text
        whole = message(await gateway.chat(tools=[ADD], tool_choice="required"))
        assert whole["content"] is None
        assert whole["tool_calls"][0]["function"] == {
            "name": "add",
            "arguments": '{"a": 1, "b": 2}',
        }
