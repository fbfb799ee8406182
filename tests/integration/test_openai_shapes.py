"""Every answer against the types of OpenAI's own client; streamed and unstreamed answers equal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel

from tests.fakes import MODEL, FakeWorker, answering, ids, write_checkpoint
from tests.gateways import Gateway, serving

TEXT = "héllo, 😀 €"
HELLO: Any = [{"role": "user", "content": "hi"}]
#: What our answers have beyond OpenAI's.
OURS = {"baton", "token_ids", "prompt_token_ids", "prompts", "store"}

#: Asked of both endpoints, streamed and not.
COMMON: list[dict[str, Any]] = [
    {},
    {"n": 3, "seed": 2},
    {"max_tokens": 4},
    {"stop": ["o,"]},
    {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": 1, "user": "u"},
    {"extra_body": {"return_token_ids": True, "top_k": 3, "min_tokens": 1}},
    {"logit_bias": {"5": 1}},
]
CHAT = [*COMMON, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"logprobs": True, "store": False}]
TEXTS = [*COMMON, {"logprobs": 2}, {"echo": True}, {"prompt": ["a", "b"], "n": 2, "logprobs": 0}]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    worker = FakeWorker(local_prefill=True, script=answering(TEXT))
    async with serving(write_checkpoint(tmp_path), [worker]) as served:
        yield served


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def beyond(model: BaseModel) -> Iterator[str]:
    """The fields, at any depth, that OpenAI's types do not know."""
    yield from model.model_extra or ()
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from beyond(one)


def strictly(kind: type[BaseModel], body: object) -> None:
    """The client's own objects are made without a check; this is one, of every type."""
    made = kind.model_validate(body, strict=True)
    assert set(beyond(made)) <= OURS


async def test_chat(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    for asked in CHAT:
        whole = await client.chat.completions.create(model=MODEL, messages=HELLO, **asked)
        strictly(ChatCompletion, whole.to_dict(mode="json"))
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            **asked,
        )
        chunks = [chunk async for chunk in stream]
        for chunk in chunks:
            strictly(ChatCompletionChunk, chunk.to_dict(mode="json"))
        assert chunks[-1].usage == whole.usage
        for expected in whole.choices:
            parts = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
            assert "".join(p.delta.content or "" for p in parts) == expected.message.content
            assert parts[-1].finish_reason == expected.finish_reason
            told = [one for p in parts if p.logprobs for one in p.logprobs.content or ()]
            content = (expected.logprobs.content or []) if expected.logprobs else []
            assert [t.to_dict() for t in told] == [t.to_dict() for t in content]
            extra = expected.model_extra or {}
            streamed = [i for p in parts for i in (p.model_extra or {}).get("token_ids", [])]
            assert streamed == extra.get("token_ids", [])


async def test_completions(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    for given in TEXTS:
        asked = {"prompt": "hi"} | given
        whole = await client.completions.create(model=MODEL, **asked)
        strictly(Completion, whole.to_dict(mode="json"))
        stream = await client.completions.create(
            model=MODEL, stream=True, stream_options={"include_usage": True}, **asked
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage == whole.usage
        for expected in whole.choices:
            parts = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
            assert "".join(part.text for part in parts) == expected.text
            assert parts[-1].finish_reason == expected.finish_reason
            told = [p.logprobs for p in parts if p.logprobs]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                one_by_one = [value for part in told for value in getattr(part, name)]
                assert one_by_one == (getattr(expected.logprobs, name, None) or [])


RESPONSES: list[dict[str, Any]] = [
    {"input": "hi"},
    {"input": "hi", "instructions": "be brief", "temperature": 0.5, "top_p": 0.9},
    {"input": HELLO, "max_output_tokens": 3, "metadata": {"a": "b"}, "user": "u"},
    {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"input": "hi", "store": False, "truncation": "disabled", "service_tier": "auto"},
]


async def test_responses(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    for asked in RESPONSES:
        whole = await client.responses.create(model=MODEL, **asked)
        strictly(Response, whole.to_dict(mode="json"))
        async with client.responses.stream(model=MODEL, **asked) as stream:
            events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events if event.type != "response.output_text.delta"]
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete" if "max_output_tokens" in asked else "response.completed",
        ]
        final: Response = getattr(events[-1], "response")  # noqa: B009 - of whichever event ends it
        expected = TEXT[:2] if "max_output_tokens" in asked else TEXT
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == final.output_text == whole.output_text == expected
        assert final.usage == whole.usage and final.status == whole.status
        logprobs = [getattr(r.output[0].content[0], "logprobs", []) for r in (whole, final)]  # type: ignore[union-attr]
        wanted = len(ids(TEXT)) if "include" in asked else 0
        assert [len(told) for told in logprobs] == [wanted, wanted]


async def test_a_conversation_of_responses(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    """What came back is sent again as it is."""
    first = await client.responses.create(model=MODEL, input="hi", instructions="be brief")
    said: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    said += [item.to_dict(mode="json") for item in first.output]
    second = await client.responses.create(
        model=MODEL, input=[*said, {"role": "user", "content": "more"}], instructions="be brief"
    )
    assert second.output_text == TEXT
    raw = await gateway.client.post("/v1/responses", json={"model": MODEL, "input": "hi"})
    assert raw.json()["store"] is False


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"store": True}, "'store' is True, which is not supported"),
        ({"previous_response_id": "resp_1"}, "'previous_response_id' is 'resp_1'"),
        ({"conversation": "c"}, "'conversation'"),
        ({"background": True}, "'background' is True"),
        ({"tools": [{"type": "web_search"}]}, "'tools"),
        ({"max_output_tokens": 0}, "max_output_tokens is 0"),
        ({"top_logprobs": 3}, "'top_logprobs' needs 'include'"),
        ({"include": ["reasoning.encrypted_content"]}, "'include.0'"),
        ({"input": []}, "'input' is empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'input.0.type'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"truncation": "auto"}, "'truncation' is 'auto', which is not supported"),
        ({"text": {"verbosity": "low"}}, "'text.verbosity'"),
        ({"wombat": 1}, "'wombat' is not supported"),
    ],
)
async def test_what_responses_refuse(gateway: Gateway, asked: dict[str, Any], says: str) -> None:
    body = {"model": MODEL, "input": "hi"} | asked
    response = await gateway.client.post("/v1/responses", json=body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_to_tokens_and_back(gateway: Gateway) -> None:
    async def post(path: str, **body: Any) -> Any:
        return (await gateway.client.post(path, json=body)).json()

    found = await post("/tokenize", prompt="hé", model=MODEL, return_token_strs=True)
    assert found["tokens"] == ids("hé") and found["count"] == 3
    assert found["token_strs"] == ["h", "Ã", "©"] and found["max_model_len"] == 2048
    chat = await post("/tokenize", messages=HELLO)
    usage = (await gateway.chat("hi")).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"] and chat["token_strs"] is None
    back = await post("/detokenize", tokens=chat["tokens"])
    assert back == {"prompt": "<|user|>hi<|assistant|>"}
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": HELLO}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"x": 1}}),
        ("/tokenize", {"prompt": "a", "model": "other"}),
        ("/tokenize", {"messages": HELLO, "add_generation_prompt": False}),
        ("/detokenize", {"tokens": [260]}),
        ("/detokenize", {"tokens": "x"}),
    ):
        assert "error" in await post(path, **body)
