"""Everything that is refused: each with its status, its name and its numbers, nothing left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.identity import CompatibilityClass
from baton.v1 import worker_pb2
from tests.fakes import (
    CLASS,
    CONTEXT,
    MODEL,
    FakeWorker,
    answering,
    eventually,
    write_checkpoint,
)
from tests.gateways import Gateway, serving

PREFILL = (worker_pb2.ROLE_PREFILL,)
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


#: Field and value over a good chat request; words that the message must have; the status.
BAD_FIELDS: list[tuple[dict[str, Any], list[str], int]] = [
    ({"model": "other"}, ["'other'", "'toy'"], 404),
    ({"messages": []}, ["'messages' is empty"], 400),
    ({"messages": "hi"}, ["messages"], 400),
    ({"messages": [{"role": "wizard", "content": "x"}]}, ["role", "'wizard'"], 400),
    ({"messages": [{"role": "user"}]}, ["messages.0.content", "missing"], 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["content"], 400),
    ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, ["system goes first"], 400),
    ({"messages": [{"role": "user", "content": "x" * 3000}]}, ["3002", str(CONTEXT)], 400),
    ({"max_tokens": CONTEXT}, [str(CONTEXT), str(CONTEXT + 4)], 400),
    ({"max_tokens": 0}, ["max_tokens is 0", "at least 1"], 400),
    ({"max_tokens": -5}, ["max_tokens is -5", "at least 1"], 400),
    ({"max_tokens": 2.5}, ["max_tokens", "2.5"], 400),
    ({"max_tokens": 5, "max_completion_tokens": 5}, ["max_completion_tokens"], 400),
    ({"temperature": -1}, ["temperature is -1", "at least 0"], 400),
    ({"temperature": float("nan")}, ["temperature is nan", "at least 0"], 400),
    ({"temperature": float("inf")}, ["temperature is inf", "at most 100"], 400),
    ({"temperature": "1"}, ["temperature", "'1'"], 400),
    ({"top_p": 0}, ["top_p is 0", "above 0"], 400),
    ({"top_p": 1.5}, ["top_p is 1.5", "at most 1"], 400),
    ({"top_k": -1}, ["top_k is -1", "at least 0"], 400),
    ({"min_p": float("-inf")}, ["min_p is -inf", "at least 0"], 400),
    ({"seed": -1}, ["seed is -1", "at least 0"], 400),
    ({"seed": 2**70}, ["seed", "at most"], 400),
    ({"presence_penalty": 3}, ["presence_penalty is 3", "at most 2"], 400),
    ({"frequency_penalty": -3}, ["frequency_penalty is -3", "at least -2"], 400),
    ({"repetition_penalty": 0}, ["repetition_penalty is 0", "above 0"], 400),
    ({"logit_bias": {"5": 200}}, ["logit_bias[5] is 200", "at most 100"], 400),
    ({"logit_bias": {"x": 1}}, ["'x'", "0 to 259"], 400),
    ({"logit_bias": {"260": 1}}, ["'260'", "0 to 259"], 400),
    ({"min_tokens": 9, "max_tokens": 5}, ["min_tokens is 9", "at most 5"], 400),
    ({"stop": ["x"] * 17}, ["17", "16"], 400),
    ({"stop": ""}, ["0 characters"], 400),
    ({"stop": [1]}, ["stop"], 400),
    ({"stream_options": {"include_usage": True}}, ["'stream_options' needs 'stream'"], 400),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        ["continuous_usage_stats' needs 'include_usage'"],
        400,
    ),
    ({"priority": 101}, ["priority is 101", "at most 100"], 400),
    ({"priority": -(10**30)}, ["priority is -1000", "at least -100"], 400),
    ({"priority": 1.5}, ["priority", "1.5"], 400),
    ({"n": 0}, ["n is 0", "at least 1"], 400),
    ({"n": 129}, ["n is 129", "at most 128"], 400),
    ({"n": True}, ["'n' is True"], 400),
    ({"best_of": 2}, ["'best_of'", "not supported"], 400),
    ({"logprobs": 1}, ["'logprobs' is 1"], 400),
    ({"store": True}, ["'store' is True", "not supported"], 400),
    ({"service_tier": "flex"}, ["'service_tier' is 'flex'", "not supported"], 400),
    ({"modalities": ["text", "audio"]}, ["'modalities.1' is 'audio'", "not supported"], 400),
    ({"prediction": {"type": "content", "content": "x"}}, ["'prediction'", "not supported"], 400),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["not supported"], 400),
    ({"wombat": 1}, ["'wombat'", "not supported"], 400),
]


@pytest.fixture
async def gateway(checkpoint: Path) -> Any:
    async with serving(checkpoint, [colocated()]) as served:
        yield served


async def test_bad_fields(gateway: Gateway) -> None:
    good = {"model": MODEL, "messages": HELLO}
    for wrong, words, status in BAD_FIELDS:
        body = json.dumps({**good, **wrong})
        response = await gateway.client.post(CHAT, content=body)
        error = response.json()["error"]
        assert response.status_code == status, (wrong, error)
        assert error["type"] == "invalid_request_error"
        for word in words:
            assert word in error["message"], (wrong, error)
    assert gateway.metric("baton_requests_total", code="404") == 1


async def test_what_means_off_is_accepted(gateway: Gateway) -> None:
    off = {
        "n": 1,
        "logprobs": False,
        "tools": None,
        "response_format": {"type": "text"},
        "stop": None,
        "stream": False,
        "temperature": 0,
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "modalities": ["text"],
    }
    assert (await gateway.chat(**off)).status_code == 200
    off = {"best_of": 1, "echo": False, "suffix": None, "logprobs": None}
    assert (await gateway.complete(**off)).status_code == 200


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["empty"]),
        ([], ["empty"]),
        (["a"] * 129, ["129 prompts"]),
        ([[1]] * 129, ["129 prompts"]),
        ([1, 260], ["260", "0 to 259"]),
        ([-1], ["-1", "0 to 259"]),
        ([1, "a"], ["prompt"]),
        (5, ["prompt"]),
        ([1] * CONTEXT, [f"{CONTEXT} tokens", f"length is {CONTEXT}"]),
    ],
)
async def test_bad_prompts(gateway: Gateway, prompt: object, words: list[str]) -> None:
    response = await gateway.complete(prompt=prompt)
    assert response.status_code == 400
    for word in words:
        assert word in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nonsense", b"\xff\xfe", b'{"model": "toy"'])
async def test_broken_json(gateway: Gateway, body: bytes) -> None:
    for path in (CHAT, TEXT):
        response = await gateway.client.post(path, content=body)
        assert response.status_code == 400
        assert "JSON" in response.json()["error"]["message"]


async def test_unknown_routes_and_methods(gateway: Gateway) -> None:
    missing = await gateway.client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "route_not_found")
    wrong = await gateway.client.get(CHAT)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    model = await gateway.client.get("/v1/models/other/model")
    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_long_body(gateway: Gateway) -> None:
    long = b'{"model": "' + b"x" * 50 * 2**20 + b'"}'

    async def unannounced() -> Any:
        for start in range(0, len(long), 2**16):
            yield long[start : start + 2**16]

    for content in (long, unannounced()):
        response = await gateway.client.post(CHAT, content=content)
        assert response.status_code == 413
        assert str(4 * 2**20) in response.json()["error"]["message"]
    assert (await gateway.chat()).status_code == 200


async def test_a_body_that_stops_half_way(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated()], body_timeout=0.3) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" % CHAT.encode()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + b'{"model"')
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 30)
        assert b"408" in answer.splitlines()[0]
        assert b"0.3 s: 8 bytes came" in answer
        writer.close()
        _, leaving = await asyncio.open_connection(host, int(port))
        leaving.write(head + b'{"model"')
        await leaving.drain()
        leaving.close()
        await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)


async def test_a_prompt_over_the_pool_names_both_numbers(checkpoint: Path) -> None:
    decode, prefill = FakeWorker(max_model_len=160), FakeWorker(roles=PREFILL, max_model_len=64)
    async with serving(checkpoint, [decode, prefill]) as gateway:
        for tokens, limit in ((500, 160), (100, 64)):
            response = await gateway.complete(prompt=[1] * tokens)
            assert response.status_code == 400
            message = response.json()["error"]["message"]
            assert f"{tokens} tokens" in message
            assert f"is {limit}" in message
        assert (await gateway.complete(prompt=[1] * 30)).status_code == 200
    assert decode.submits[0].generation.sampling.max_tokens == 130


async def test_no_worker(checkpoint: Path) -> None:
    async with serving(checkpoint, []) as gateway:
        response = await gateway.chat(stream=True)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "no_worker"
        ready = await gateway.client.get("/ready")
        assert ready.status_code == 503
        assert "no healthy decode worker" in ready.json()["reasons"][0]


async def test_queue_full(checkpoint: Path) -> None:
    worker = colocated(script=answering("x", stop_after=0))
    async with serving(checkpoint, [worker], max_queue_tokens=100) as gateway:
        first = asyncio.create_task(gateway.complete(prompt=[1] * 90))
        await worker.submitted(1)
        response = await gateway.complete(prompt=[1] * 20)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        message = response.json()["error"]["message"]
        assert "holds 90" in message
        assert "limit of 100" in message
        first.cancel()
        await worker.cancelled()


async def test_another_models_layout_is_never_paired(checkpoint: Path) -> None:
    layout = CompatibilityClass(
        model_revision="toy-1", layers=4, kv_heads=1, head_size=8, block_size=16
    )
    assert layout != CLASS
    decode, prefill = FakeWorker(), FakeWorker(roles=PREFILL, compatibility=layout)
    async with serving(checkpoint, [decode, prefill]) as gateway:
        response = await gateway.complete()
        assert response.status_code == 503
        assert (
            "layers 4 of the prefill worker, 2 of the decode" in response.json()["error"]["message"]
        )
        ready = await gateway.client.get("/ready")
        assert ready.status_code == 503
        assert "layers 4 of the prefill worker, 2 of the decode" in ready.json()["reasons"][0]
    assert decode.submits == []


async def test_a_protocol_too_old_is_refused(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(protocol=0)], healthy=0) as gateway:
        await eventually(lambda: any(m.reason for m in gateway.service.registry.members))
        async with httpx.AsyncClient(base_url=gateway.admin_url, timeout=20) as admin:
            worker = (await admin.get("/cluster")).json()["workers"][0]
        assert worker["state"] == "refused"
        assert "protocol version 0 there, 1 to 2 here" in worker["reason"]
        ready = (await gateway.client.get("/ready")).json()
        assert any("protocol version 0" in reason for reason in ready["reasons"])
        assert (await gateway.complete()).status_code == 503


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seed": 10**400}, "seed is 1000"),
        ({"top_k": 10**400}, "top_k is 1000"),
        ({"max_tokens": 10**4299}, "max_tokens is 1000"),
        ({"logit_bias": {"9" * 5000: 1}}, "0 to 259"),
        ({"logit_bias": {"01": 1}}, "0 to 259"),
        ({"model": "m" * 100_000}, "is not served here"),
        ({"prompt": "x" * 4_000_000}, "4000000 characters"),
    ],
)
async def test_absurd_values_get_short_answers(
    gateway: Gateway, fields: dict[str, Any], says: str
) -> None:
    response = await gateway.complete(**fields)
    assert response.status_code in (400, 404)
    assert says in response.json()["error"]["message"]
    assert len(response.text) < 1000


DEEP = "[" * 960 + "]" * 960
CALLED = [*HELLO, {"role": "tool", "tool_call_id": "c", "content": "x"}]


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud800"}', DEEP, "NaN"], ids=["surrogate", "deep", "nan"]
)
async def test_arguments_that_could_not_be_written_again(gateway: Gateway, arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    told = [CALLED[0], {"role": "assistant", "tool_calls": [call]}, CALLED[1]]
    refused = await gateway.chat(messages=told)
    assert refused.status_code == 400
    assert "messages.1.tool_calls.0.function.arguments" in refused.json()["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
async def test_a_schema_that_no_answer_could_repeat(gateway: Gateway, number: str) -> None:
    tool = f'{{"type": "function", "name": "f", "parameters": {{"maximum": {number}}}}}'
    body = f'{{"model": "{MODEL}", "input": "hi", "tools": [{tool}], "tool_choice": "none"}}'
    refused = await gateway.client.post("/v1/responses", content=body)
    assert refused.status_code == 400
    assert "tools.0.parameters" in refused.json()["error"]["message"]


async def test_parts_of_a_body_are_bounded_and_text_is_not(gateway: Gateway) -> None:
    """A list of a hundred thousand messages takes longer to read than text of its length."""
    refused = await gateway.chat(messages=HELLO * 30_000)
    assert refused.status_code == 400
    assert "30002 objects and arrays, but 24576" in refused.json()["error"]["message"]
    code = await gateway.chat('{["\\"]}' * 10_000)
    assert "context length" in code.json()["error"]["message"]


async def test_long_lists_of_ids_come_in_parts(gateway: Gateway) -> None:
    text = "ab\u20ac" * 3000
    body = {"prompt": text, "return_token_strs": True}
    told = (await gateway.client.post("/tokenize", json=body)).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) == 15_000
    assert told["token_strs"][:2] == ["a", "b"]
    back = await gateway.client.post("/detokenize", json={"tokens": told["tokens"]})
    assert back.json()["prompt"] == text


async def test_who_leaves_within_a_body_is_no_error_of_ours(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    for path in (b"/tokenize", b"/v1/completions"):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
    await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)
    assert not [record for record in caplog.records if record.exc_info]


async def test_all_bodies_together_are_bounded(checkpoint: Path) -> None:
    """Those that arrive and those that wait; one that was understood is counted no more."""
    worker = colocated(script=answering("hello", stop_after=1))
    async with serving(checkpoint, [worker], max_bodies_bytes=20_000) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        asked = {"metadata": {"a": "x" * 9000}}
        running = [asyncio.create_task(gateway.chat(**asked)) for _ in range(3)]
        await worker.submitted(3)
        _, slow = await asyncio.open_connection(host, int(port))
        slow.write(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 15000\r\n\r\n")
        slow.write(b" " * 14_000)
        async with asyncio.timeout(30):
            while (refused := await gateway.chat(max_tokens=0, **asked)).status_code == 400:
                pass
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bodies_full")
        assert "retry-after" in refused.headers
        slow.close()
        async with asyncio.timeout(30):
            while (await gateway.chat(max_tokens=0, **asked)).status_code == 503:
                pass
        for task in running:
            task.cancel()
        await worker.cancelled(3)
