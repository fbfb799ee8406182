"""The official client, unchanged, against the demo model."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.e2e.cluster import MODEL, Cluster, until

PROMPT = "Prefill and decode"
MESSAGES = [{"role": "user", "content": "What is a KV cache?"}]


@pytest.fixture
async def openai(demo: Cluster) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as api:
        yield api


async def test_models(openai: AsyncOpenAI) -> None:
    assert [model.id async for model in openai.models.list()] == [MODEL]


async def test_chat_whole_and_streamed_agree(openai: AsyncOpenAI) -> None:
    whole = await openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None and whole.usage.completion_tokens > 5
    stream = await openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_completion_whole_and_streamed_agree(openai: AsyncOpenAI) -> None:
    whole = await openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=0.7, seed=5
    )
    assert whole.usage is not None and whole.usage.completion_tokens <= 20
    stream = await openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=0.7, seed=5, stream=True
    )
    assert "".join([c.choices[0].text async for c in stream]) == whole.choices[0].text


async def test_log_probabilities_from_prefill_and_decode_worker(openai: AsyncOpenAI) -> None:
    """Greedy: each token, the first included, is the most likely of those told with it."""
    answer = await openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    told = choice.logprobs.content
    assert "".join(one.token for one in told) == choice.message.content
    for one in told:
        shares = [math.exp(best.logprob) for best in one.top_logprobs]
        assert one.top_logprobs[0].token == one.token
        assert one.top_logprobs[0].logprob == one.logprob
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6


async def test_an_echo_has_the_log_probabilities_that_it_was_written_with(
    openai: AsyncOpenAI,
) -> None:
    """Those of the prompt's own first tokens are of decode steps too: each given those before."""
    common: dict[str, Any] = {"model": MODEL, "temperature": 0, "logprobs": 2}
    more = {"return_token_ids": True, "ignore_eos": True}
    written = await openai.completions.create(
        prompt=PROMPT, max_tokens=16, extra_body=more, **common
    )
    assert written.model_extra is not None and written.choices[0].model_extra is not None
    tokens = [
        *written.model_extra["prompt_token_ids"],
        *written.choices[0].model_extra["token_ids"],
    ]
    echo = await openai.completions.create(prompt=tokens, max_tokens=0, echo=True, **common)
    scored, before = echo.choices[0].logprobs, written.choices[0].logprobs
    assert scored is not None and before is not None
    assert scored.tokens is not None and "".join(scored.tokens) == echo.choices[0].text
    assert scored.token_logprobs is not None and scored.token_logprobs[0] is None
    count = len(before.tokens or [])
    assert count == 16 and scored.tokens[-count:] == before.tokens
    assert scored.token_logprobs[-count:] == pytest.approx(before.token_logprobs, abs=1e-4)
    assert all(score is not None and score < 0 for score in scored.token_logprobs[1:])


async def test_responses_streamed(openai: AsyncOpenAI) -> None:
    async with openai.responses.stream(
        model=MODEL, input="What is a KV cache?", instructions="Be brief.", temperature=0
    ) as stream:
        text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert final.output_text == text and len(text) > 10
    assert final.usage is not None and final.usage.output_tokens > 5


async def test_cancel_in_mid_stream_frees_the_worker(demo: Cluster, openai: AsyncOpenAI) -> None:
    stream = await openai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    received = 0
    async for _ in stream:
        received += 1
        if received == 5:
            break
    await stream.close()
    until(lambda: demo.loads()["d0"]["blocks_owned"] == 0, 30.0, "blocks of the cancelled freed")
    assert received == 5


async def test_refusals_are_the_clients_own_exceptions(openai: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="other"):
        await openai.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(BadRequestError, match="suffix"):
        await openai.completions.create(model=MODEL, prompt=PROMPT, suffix="x")
