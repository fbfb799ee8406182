"""Answers held to a format, from the demo model and from random weights: by the official client,
and by many random schemas."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

from tests.e2e.cluster import MODEL, Cluster, cluster
from tests.json_schemas import schema

ASK = [{"role": "user", "content": "What is a KV cache?"}]
#: Bytes of the longest value: random weights write one token for each, in a context of 512.
MOST = 400
AT_ONCE = 8


class Note(BaseModel):
    title: Annotated[str, Field(max_length=12)]
    stars: Annotated[int, Field(ge=0, le=5)]
    kind: Literal["idea", "fact"]


@pytest.fixture
async def openai(demo: Cluster) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as api:
        yield api


async def test_the_client_parses_what_it_asked_for(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Note, max_tokens=200, n=2, temperature=1, seed=4
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    first, second = (choice.message.parsed for choice in answer.choices)
    assert isinstance(first, Note) and isinstance(second, Note) and first != second


async def test_the_client_s_stream_tells_of_calls(openai: AsyncOpenAI) -> None:
    asked = {
        "model": MODEL,
        "messages": ASK,
        "tools": [pydantic_function_tool(Note, name="note")],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 6,
        "temperature": 0,
        "max_tokens": 200,
    }
    whole = await openai.chat.completions.create(**asked)
    async with openai.chat.completions.stream(**asked) as stream:
        seen = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert seen.count("tool_calls.function.arguments.delta") > 2
    assert whole.choices[0].finish_reason == final.choices[0].finish_reason == "tool_calls"
    [call], [same] = whole.choices[0].message.tool_calls, final.choices[0].message.tool_calls
    assert (call.id, call.function.arguments) == (same.id, same.function.arguments)
    assert isinstance(same.function.parsed_arguments, Note)


async def follow_schemas(running: Cluster, count: int) -> None:
    """Every streamed answer is whole, and valid."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as api:

        async def follow(number: int) -> None:
            wanted, most = schema(random.Random(number), MOST)
            named = {"name": "answer", "schema": wanted}
            async with gate:
                stream = await api.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Go"}],
                    response_format={"type": "json_schema", "json_schema": named},
                    temperature=number % 3 / 2,
                    seed=number,
                    max_tokens=most + 1,
                    stream=True,
                )
                choices = [chunk.choices[0] async for chunk in stream]
            assert choices[-1].finish_reason == "stop", wanted
            text = "".join(choice.delta.content or "" for choice in choices)
            jsonschema.validate(json.loads(text), wanted)

        await asyncio.gather(*map(follow, range(count)))


async def test_random_schemas(demo: Cluster) -> None:
    await follow_schemas(demo, 40)


@pytest.fixture(scope="module")
def random_weights(tiny_llama: Path) -> Iterator[Cluster]:
    with cluster(tiny_llama) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_many_random_schemas(demo: Cluster) -> None:
    await follow_schemas(demo, 200)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_many_random_schemas_on_random_weights(random_weights: Cluster) -> None:
    await follow_schemas(random_weights, 200)
