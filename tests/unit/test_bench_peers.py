"""Whole systems under the same load: what is served, vLLM's proxy, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.load.raw import Answer, Level
from bench.load.statistics import Measured, Slo, Trust, estimate
from bench.long_prompts import gaps
from bench.peers import words
from bench.peers.proxy import Proxy
from bench.peers.tried import Tried, evaluate, highest
from bench.shapes import SMOLLM2_135M, TINY
from gateway.tokenizer import load


@pytest.mark.parametrize("vocab", [TINY.vocab, SMOLLM2_135M.vocab])
def test_a_tokenizer_has_as_many_tokens_as_the_model_and_each_is_text(vocab: int) -> None:
    made = words.tokenizer(vocab)
    texts = [made.decode([token]) for token in range(256, vocab)]
    assert made.get_vocab_size() == vocab
    assert len({*texts}) == vocab - 256
    assert all(text.isascii() and text.isalpha() for text in texts)
    assert made.decode(made.encode("any text, é too").ids) == "any text, é too"


def test_a_vocabulary_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="100 tokens cannot be made of 256 bytes"):
        words.tokenizer(100)


def test_the_gateway_takes_a_served_checkpoint(tmp_path: Path) -> None:
    served = load(str(words.served(TINY, tmp_path)))
    assert (served.vocab_size, served.context_length) == (TINY.vocab, TINY.context)


def level(rate: float, ttft: float, good: int, late: int) -> Tried:
    """So many answers in time, so many with a first token that came too late."""
    made = Level("", "rate", rate, lag=[0.0])
    for number in range(good + late):
        first = number + (ttft if number < good else 10 * ttft)
        made.answers.append(Answer(number, number, (first, first + 0.1), first + 0.1, 2, 3))
    measured = Measured(made)
    told = estimate(measured, Slo(ttft=1.0, tpot=1.0), Trust(share=0.1, lag=1.0))
    return Tried("vllm" if rate < 10 else "baton-pd", rate, "a load", measured, told)


def test_the_highest_rate_is_the_last_before_the_first_that_is_not_held() -> None:
    tried = [level(1, 0.5, 19, 1), level(2, 0.5, 10, 10), level(3, 0.5, 20, 0)]
    tried += [level(10, 0.5, 20, 0), level(12, 0.5, 18, 2), level(14, 0.5, 17, 3)]
    assert highest(tried, 0.9) == {"vllm": 1, "baton-pd": 12}
    ratios = {
        one.params["system"]: one.value
        for one in evaluate(tried, 0.9, "a test")
        if one.name == "over vLLM"
    }
    assert ratios == {"vllm": 1, "baton-pd": 12}


def test_gaps_are_those_within_the_time_that_was_watched() -> None:
    came = [[0.0, 1.0, 1.5, 2.5], [1.25, 1.5]]
    assert gaps(came, since=1.0, until=2.0) == [0.5, 0.25]


async def test_the_proxy_asks_for_the_kv_and_passes_on_what_comes_of_it() -> None:
    asked = list[dict[str, object]]()

    async def prefill(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"kv_transfer_params": {"remote_block_ids": [1, 2]}})

    async def decode(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.Response(text="data: [DONE]\n\n", content_type="text/event-stream")

    async with server(prefill) as first, server(decode) as second:
        proxy = Proxy(str(first.make_url("")).rstrip("/"), str(second.make_url("")).rstrip("/"))
        body = {"prompt": [1], "max_tokens": 9, "stream": True, "stream_options": {}}
        answer = await through(proxy, body)
    assert answer == (200, "data: [DONE]\n\n")
    assert asked[0]["max_tokens"] == 1
    assert asked[0]["stream"] is False
    assert "stream_options" not in asked[0]
    assert asked[1] == {**body, "kv_transfer_params": {"remote_block_ids": [1, 2]}}


async def test_the_proxy_says_that_a_server_failed() -> None:
    async def prefill(request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with server(prefill) as first:
        url = str(first.make_url("")).rstrip("/")
        status, text = await through(Proxy(url, url), {"prompt": [1]})
    assert (status, "500" in text) == (502, True)


def server(handle: object) -> TestServer:
    app = web.Application()
    app.router.add_post("/v1/completions", handle)  # type: ignore[arg-type]
    return TestServer(app)


async def through(proxy: Proxy, body: dict[str, object]) -> tuple[int, str]:
    """Status and text of an answer of the proxy's."""
    app = proxy.app()
    async with (
        proxy.lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as client,
    ):
        answer = await client.post("/v1/completions", content=json.dumps(body))
        return answer.status_code, answer.text
