"""Answers, streamed and whole, through the gateway's real HTTP face, over scripted workers."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from baton.generation import Timings
from baton.v1 import worker_pb2
from tests.fakes import EOS, MODEL, USER, FakeWorker, answering, eventually, ids, write_checkpoint
from tests.gateways import Gateway, events, serving

PREFILL = (worker_pb2.ROLE_PREFILL,)
TEXT = "héllo wörld, 😀 said the €"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


async def test_chat_whole(checkpoint: Path) -> None:
    timings = Timings(decode_cached_tokens=2)
    async with serving(checkpoint, [colocated(script=answering(TEXT, timings=timings))]) as gateway:
        response = await gateway.chat("hi", seed=7, return_token_ids=True)
        body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["token_ids"] == [*ids(TEXT), EOS]
    prompt = [USER, *ids("hi"), 258]
    assert body["prompt_token_ids"] == prompt
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert body["usage"]["completion_tokens"] == len(ids(TEXT)) + 1
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert body["baton"]["seed"] == 7
    assert response.headers["x-request-id"] == body["id"] == body["baton"]["request_id"]


async def test_chat_streamed(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering(TEXT))]) as gateway:
        response = await gateway.chat(
            stream=True, stream_options={"include_usage": True}, return_token_ids=True
        )
        data = await events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert set(chunks[0]["baton"]) == {"request_id", "seed", "prompt_digest", "workers"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == TEXT
    assert [i for choice in choices for i in choice.get("token_ids", [])] == [*ids(TEXT), EOS]
    assert [choice["finish_reason"] for choice in choices][-2:] == [None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(ids(TEXT)) + 1


async def test_one_event_per_token(checkpoint: Path) -> None:
    worker = colocated(script=answering("abcdef", pause=0.02))
    async with serving(checkpoint, [worker]) as gateway:
        data = await events(await gateway.complete(stream=True))
    texts = [json.loads(line)["choices"][0]["text"] for line in data[:-1]]
    assert texts == ["", "a", "b", "c", "d", "e", "f", ""]


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_usage_with_every_chunk(checkpoint: Path, kind: str) -> None:
    worker = colocated(script=answering("abc", pause=0.02))
    async with serving(checkpoint, [worker]) as gateway:
        options = {"include_usage": True, "continuous_usage_stats": True}
        data = await events(await getattr(gateway, kind)(stream=True, stream_options=options))
    usages = [json.loads(line)["usage"] for line in data[:-1]]
    # What opens it; a, b, c; why it ended, which came with a token of its own; the last.
    assert [usage["completion_tokens"] for usage in usages] == [0, 1, 2, 3, 4, 4]
    assert all(usage["prompt_tokens"] == usages[-1]["prompt_tokens"] > 0 for usage in usages)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_across_tokens_ends_the_answer(checkpoint: Path, stream: bool) -> None:
    worker = colocated(script=answering("one two three", pause=0.01))
    async with serving(checkpoint, [worker]) as gateway:
        response = await gateway.complete(stop=["o t", "zzz"], stream=stream, return_token_ids=True)
        cancelled = await worker.cancelled()
    if stream:
        data = await events(response)
        choices = [json.loads(line)["choices"][0] for line in data[:-1]]
        assert "".join(choice["text"] for choice in choices) == "one tw"
        assert choices[-1]["finish_reason"] == "stop"
    else:
        body = response.json()
        assert body["choices"][0]["text"] == "one tw"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == len("one two t")
        assert body["choices"][0]["token_ids"] == ids("one two t")
    assert cancelled == worker.submits[0].key


async def test_max_tokens_and_token_id_prompts(checkpoint: Path) -> None:
    worker = colocated(script=answering("abcdef"))
    async with serving(checkpoint, [worker]) as gateway:
        response = await gateway.complete(prompt=[1, 2, 3], max_tokens=3)
        single = await gateway.complete(prompt=[[4, 5]], max_tokens=2)
    assert response.json()["choices"][0]["text"] == "abc"
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert single.json()["choices"][0]["text"] == "ab"
    assert worker.submits[0].generation.prompt_ids == (1, 2, 3)
    assert worker.submits[1].generation.prompt_ids == (4, 5)


async def test_what_is_asked_reaches_the_worker(checkpoint: Path) -> None:
    worker = colocated()
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with serving(checkpoint, [worker]) as gateway:
        await gateway.client.post(
            "/v1/chat/completions",
            headers={"traceparent": traceparent},
            json={
                "model": MODEL,
                "messages": [
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "text", "text": "h"}]},
                ],
                "max_completion_tokens": 9,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 5,
                "min_p": 0.1,
                "seed": 3,
                "presence_penalty": 1,
                "frequency_penalty": -1,
                "repetition_penalty": 1.1,
                "logit_bias": {"65": 2},
                "min_tokens": 2,
                "n": 1,
                "user": "someone",
                "priority": -3,
            },
        )
    generation = worker.submits[0].generation
    spec = generation.sampling
    assert generation.prompt_ids == (259, *ids("be brief"), USER, *ids("h"), 258)
    assert (spec.temperature, spec.top_p, spec.top_k, spec.min_p) == (0.5, 0.9, 5, 0.1)
    assert (spec.seed, spec.max_tokens, spec.min_tokens) == (3, 9, 2)
    assert (spec.presence_penalty, spec.frequency_penalty) == (1, -1)
    assert (spec.repetition_penalty, dict(spec.logit_bias)) == (1.1, {65: 2})
    assert spec.eos_ids == (EOS,)
    assert generation.traceparent == traceparent
    assert generation.priority == 3, "over HTTP the smaller goes first, between workers the larger"


async def test_prefill_and_decode_are_paired(checkpoint: Path) -> None:
    decode, prefill = FakeWorker(), FakeWorker(roles=PREFILL)
    busy = FakeWorker(roles=PREFILL, queued_tokens=500)
    async with serving(checkpoint, [decode, prefill, busy]) as gateway:
        assert (await gateway.complete()).status_code == 200
    assert decode.submits[0].prefill_instance_id == prefill.instance_id


async def test_official_client(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering(TEXT, pause=0.002))]) as gateway:
        url = f"{gateway.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            whole = await client.chat.completions.create(model=MODEL, messages=messages)
            assert whole.choices[0].message.content == TEXT
            messages += [whole.choices[0].message, {"role": "user", "content": "more"}]
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, stream=True
            )
            deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(deltas) == TEXT
            text = await client.completions.create(model=MODEL, prompt="hi")
            assert text.choices[0].text == TEXT
            texts = await client.completions.create(model=MODEL, prompt="hi", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in texts]) == TEXT
            assert [model.id async for model in await client.models.list()] == [MODEL]
            with pytest.raises(openai.NotFoundError, match="not served"):
                await client.chat.completions.create(model="other", messages=messages)
            both = await client.chat.completions.create(model=MODEL, messages=messages, n=2)
            assert [choice.message.content for choice in both.choices] == [TEXT, TEXT]
            with pytest.raises(openai.BadRequestError, match="n is 129"):
                await client.chat.completions.create(model=MODEL, messages=messages, n=129)


async def test_official_client_cancels_in_mid_stream(checkpoint: Path) -> None:
    worker = colocated(script=answering(TEXT, stop_after=5))
    async with serving(checkpoint, [worker]) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
            await anext(stream)
            assert gateway.metric("baton_open_streams") == 1
            await stream.close()
            key = await worker.cancelled()
        assert key == worker.submits[0].key
        await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)


@pytest.mark.parametrize("stop_after", [0, 3])
async def test_leaving_before_the_answer_is_whole_cancels(
    checkpoint: Path, stop_after: int
) -> None:
    worker = colocated(script=answering(TEXT, stop_after=stop_after))
    async with serving(checkpoint, [worker]) as gateway:
        asking = asyncio.create_task(gateway.complete(stream=stop_after == 0))
        await worker.submitted(1)
        asking.cancel()
        assert await worker.cancelled() == worker.submits[0].key
        await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)


async def test_a_silent_stream_is_kept_open(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.streams.PING_INTERVAL", 0.02)
    worker = colocated(script=answering(TEXT, stop_after=3))
    async with serving(checkpoint, [worker]) as gateway:
        asked = {"model": MODEL, "prompt": "hi", "stream": True}
        async with gateway.client.stream("POST", "/v1/completions", json=asked) as response:
            pings = 0
            async for line in response.aiter_lines():
                pings += line.startswith(": ping")
                if pings == 2:
                    break
        assert await worker.cancelled() == worker.submits[0].key


async def test_a_client_that_does_not_read_is_cut(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, max_position_embeddings=10**6)
    text = "x" * 200_000
    worker = colocated(script=answering(text), max_model_len=10**6)
    async with serving(checkpoint, [worker], write_timeout=0.3) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({"model": MODEL, "prompt": "hi", "stream": True}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        await reader.readline()
        await worker.cancelled()
        await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)
        writer.close()
        del reader


async def test_endpoints_that_tell(checkpoint: Path) -> None:
    async with serving(checkpoint, [FakeWorker(), FakeWorker(roles=PREFILL)]) as gateway:
        assert (await gateway.client.get("/health")).json() == {"status": "alive"}
        assert (await gateway.client.get("/ready")).json() == {"status": "ready"}
        models = (await gateway.client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == [MODEL]
        assert (await gateway.client.get(f"/v1/models/{MODEL}")).json()["object"] == "model"
        await gateway.complete()
        metrics = (await gateway.client.get("/metrics")).text
        assert 'baton_requests_total{code="200"} 1.0' in metrics
        assert "baton_time_to_first_token_seconds_count 1.0" in metrics
        assert (await gateway.client.get("/cluster")).status_code == 404
        async with httpx.AsyncClient(base_url=gateway.admin_url, timeout=20) as admin:
            cluster = (await admin.get("/cluster")).json()
        assert {worker["state"] for worker in cluster["workers"]} == {"healthy"}
        assert sorted(role for w in cluster["workers"] for role in w["roles"]) == [
            "decode",
            "prefill",
        ]
        assert cluster["workers"][0]["compatibility"]["layers"] == 2
        assert cluster["workers"][0]["transports"][-1]["name"] == "grpc"


async def test_hand_offs_are_shown(checkpoint: Path) -> None:
    def pairing(**counts: int) -> worker_pb2.KvPairing:
        agreed = worker_pb2.KvPairing(
            instance_id="a", address="p:1", transport="grpc", downgrades=["shm: another host"]
        )
        agreed.MergeFrom(worker_pb2.KvPairing(checksums=True, stripes=2, **counts))
        return agreed

    worker = colocated(kv_pairings=[pairing(complete=5, bytes=500)])
    async with serving(checkpoint, [worker]) as gateway:
        worker.kv_pairings = [
            pairing(complete=7, failed=1, bytes=800),
            worker_pb2.KvPairing(instance_id="b", transport="odd", complete=3, bytes=30),
            worker_pb2.KvPairing(instance_id="c", failed=2, downgrades=["none in common"]),
        ]
        pairs = partial(gateway.metric, "baton_kv_pairs")
        await eventually(lambda: pairs(transport="none", checksums="off") == 1)
        assert pairs(transport="grpc", checksums="on") == 1
        assert pairs(transport="other", checksums="off") == 1
        downgraded = {"transport": "grpc", "passed_over": "shm"}
        assert gateway.metric("baton_kv_downgraded_pairs", **downgraded) == 1
        worker.kv_pairings = [pairing(complete=1, bytes=100)]  # it was forgotten, and is back
        await eventually(lambda: pairs(transport="none", checksums="off") == 0)
        async with httpx.AsyncClient(base_url=gateway.admin_url, timeout=20) as admin:
            (described,) = (await admin.get("/cluster")).json()["workers"]
        assert described["kv_pairings"] == [
            {
                "instance_id": "a",
                "address": "p:1",
                "transport": "grpc",
                "downgrades": ["shm: another host"],
                "checksums": True,
                "stripes": 2,
                "complete": 1,
                "failed": 0,
                "bytes": 100,
                "bytes_per_s": 0.0,
            }
        ]


async def test_many_at_once(checkpoint: Path) -> None:
    async with serving(
        checkpoint, [colocated(script=answering(TEXT)) for _ in range(3)]
    ) as gateway:
        answers = await asyncio.gather(*(one_stream(gateway) for _ in range(40)))
    assert answers == [TEXT] * 40


async def one_stream(gateway: Gateway) -> str:
    data = await events(await gateway.complete(stream=True))
    return "".join(json.loads(line)["choices"][0]["text"] for line in data[:-1])
