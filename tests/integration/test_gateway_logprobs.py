"""Log probabilities, echoes and several prompts: as OpenAI's client reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baton.errors import DecodeLost
from baton.generation import FinishReason
from tests.fakes import (
    EOS,
    FakeSession,
    FakeWorker,
    Submitted,
    answering,
    echoing,
    ids,
    write_checkpoint,
)
from tests.fakes import scored as told
from tests.gateways import Gateway, events, serving

TEXT = "a€ b"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


async def chunks(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    """The choices of all events of a streamed completion."""
    data = await events(await gateway.complete(stream=True, **body))
    assert data[-1] == "[DONE]", data[-1]
    return [choice for line in data[:-1] for choice in json.loads(line)["choices"]]


async def test_chat_tells_each_token_and_the_best(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering(TEXT))]) as gateway:
        body = (await gateway.chat(logprobs=True, top_logprobs=2)).json()
        alone = (await gateway.chat(logprobs=True)).json()
        stream = await events(await gateway.chat(logprobs=True, top_logprobs=2, stream=True))
    content = body["choices"][0]["logprobs"]["content"]
    assert [bytes(one["bytes"]) for one in content] == [bytes([b]) for b in TEXT.encode()]
    assert content[0]["token"] == "a" and content[1]["token"] == "\ufffd"
    assert [one["logprob"] for one in content] == [-token_id / 64 for token_id in ids(TEXT)]
    assert [best["logprob"] for best in content[0]["top_logprobs"]] == [0.0, -1 / 64]
    assert alone["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    parts = [json.loads(line)["choices"][0]["logprobs"] for line in stream[:-1]]
    assert [one for part in parts if part for one in part["content"]] == content


async def test_text_completions_tell_four_lists(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering(TEXT))]) as gateway:
        body = (await gateway.complete(logprobs=1)).json()
        streamed = await chunks(gateway, logprobs=1)
    found = body["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", " ", "b"]
    assert found["text_offset"] == [0, 1, 1, 1, 2, 3]
    assert found["token_logprobs"] == [-token_id / 64 for token_id in ids(TEXT)]
    assert found["top_logprobs"][0] == {"!": 0.0, "a": -ids("a")[0] / 64}
    parts = [choice["logprobs"] for choice in streamed if choice["logprobs"]]
    assert {key: [one for part in parts for one in part[key]] for key in found} == found


async def test_a_stop_string_drops_what_comes_behind_it(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering("one two"))]) as gateway:
        body = (await gateway.complete(logprobs=0, stop="e t")).json()
    choice = body["choices"][0]
    assert choice["text"] == "on"
    assert "".join(choice["logprobs"]["tokens"]) == "one t"


async def test_none_is_lost_over_the_loss_of_a_worker(checkpoint: Path) -> None:
    """Of two tokens told at once the first attempt's are kept; the second one goes on."""
    answer = [*ids("abc"), EOS]

    async def script(session: FakeSession, submitted: Submitted) -> None:
        known = len(submitted.generation.generated_ids)
        part = answer[known : known + 2]
        session.tokens(submitted.key, known, part, logprobs=[told(i, 0) for i in part])
        if known:
            session.finish(submitted.key, FinishReason.STOP)
        else:
            session.fail(submitted.key, DecodeLost("gone"))

    worker = colocated(script=script)
    async with serving(checkpoint, [worker]) as gateway:
        body = (await gateway.complete(logprobs=0)).json()
    assert len(worker.submits) == 2
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["token_logprobs"] == [-token_id / 64 for token_id in ids("abc")]


async def test_a_resumed_answer_goes_on_with_the_next(checkpoint: Path) -> None:
    resumed = {"generated_ids": ids("a€"), "seed": 1}
    async with serving(checkpoint, [colocated(script=answering(TEXT))]) as gateway:
        body = (await gateway.complete(logprobs=0, baton_resume=resumed)).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [" ", "b"]
    assert logprobs["text_offset"] == [2, 3]


async def test_a_worker_that_does_not_tell_is_left(checkpoint: Path) -> None:
    async def silent(session: FakeSession, submitted: Submitted) -> None:
        session.tokens(submitted.key, 0, [5])

    async with serving(checkpoint, [colocated(script=silent)], retry_budget=0.2) as gateway:
        response = await gateway.complete(logprobs=0)
    assert response.status_code == 502
    assert "without its log probabilities" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"logprobs": 6}, "logprobs is 6, but must be at least 0 and at most 5"),
        ({"logprobs": True}, "'logprobs' is True"),
        ({"logprobs": 1, "echo": True, "prompt": "x" * 2000}, "2000 tokens would take a grammar"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -1, "echo": True}, "max_tokens is -1, but must be at least 0"),
        ({"prompt": ["a"] * 65, "n": 2}, "65 prompts and n is 2, together 130 answers, but 128"),
        ({"prompt": ["a", ""]}, "prompt 1 is empty"),
        ({"prompt": ["a", "b"], "baton_resume": {"generated_ids": [], "seed": 1}}, "one prompt"),
    ],
)
async def test_what_is_refused(checkpoint: Path, fields: dict[str, Any], says: str) -> None:
    async with serving(checkpoint, [colocated()], max_grammar_bytes=10_000) as gateway:
        response = await gateway.complete(**fields)
        assert response.status_code == 400
        assert says in response.json()["error"]["message"]
        for wrong in ({"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 1}):
            assert (await gateway.chat(**wrong)).status_code == 400


async def test_several_prompts_are_answered_as_one(checkpoint: Path) -> None:
    worker = colocated(script=answering(TEXT))
    async with serving(checkpoint, [worker]) as gateway:
        body = (await gateway.complete([[1, 2], [3]], n=2, seed=4, return_token_ids=True)).json()
        streamed = await chunks(gateway, prompt=["x", "y", "z"], n=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert {choice["text"] for choice in body["choices"]} == {TEXT}
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 4 * (len(ids(TEXT)) + 1)
    assert [one["prompt_token_ids"] for one in body["prompts"]] == [[1, 2], [3]]
    first = [s.generation for s in worker.submits if len(s.generation.prompt_ids) == 2]
    assert {(g.key.choice_index, g.more_choices) for g in first} == {(0, (1,))}
    assert len({s.key for s in worker.submits}) == len(worker.submits)
    texts = {i: "".join(c["text"] for c in streamed if c["index"] == i) for i in range(6)}
    assert texts == dict.fromkeys(range(6), TEXT)
    assert sum(choice["finish_reason"] == "stop" for choice in streamed) == 6


async def test_each_of_several_prompts_is_resumed_by_itself(checkpoint: Path) -> None:
    worker = colocated(script=answering(TEXT))
    async with serving(checkpoint, [worker]) as gateway:
        whole = (await gateway.complete(["x", "y"], n=2)).json()
        origin = whole["prompts"][1]["baton"]
        resumed = {**origin, "choice": 3, "generated_ids": ids(TEXT)[:2]}
        del resumed["request_id"]
        response = await gateway.complete("y", baton_resume=resumed)
    assert response.status_code == 200, response.text
    assert worker.submits[-1].key.choice_index == 3
    assert response.json()["choices"][0]["index"] == 3


async def test_echo(checkpoint: Path) -> None:
    worker = colocated(script=answering(TEXT))
    async with serving(checkpoint, [worker]) as gateway:
        body = (await gateway.complete([ids("hé"), ids("x")], echo=True)).json()
        streamed = await chunks(gateway, prompt="hé", echo=True)
        before = len(worker.submits)
        alone = (await gateway.complete(["hé", "x"], echo=True, max_tokens=0)).json()
        silent = await chunks(gateway, prompt="hé", echo=True, max_tokens=0)
    assert [choice["text"] for choice in body["choices"]] == ["hé" + TEXT, "x" + TEXT]
    assert "".join(choice["text"] for choice in streamed) == "hé" + TEXT
    assert [choice["text"] for choice in alone["choices"]] == ["hé", "x"]
    assert alone["usage"]["completion_tokens"] == 0
    assert alone["choices"][0]["finish_reason"] == "length"
    assert "".join(choice["text"] for choice in silent) == "hé"
    assert len(worker.submits) == before, "no worker is asked for nothing"


async def test_an_echo_is_scored_before_it_is_answered(checkpoint: Path) -> None:
    prompt = ids("h\u20ac y")
    worker = colocated(script=echoing(answering(TEXT)))
    asked: dict[str, Any] = {"prompt": "h\u20ac y", "echo": True, "logprobs": 1, "n": 2}
    async with serving(checkpoint, [worker]) as gateway:
        body = (await gateway.complete(**asked)).json()
        streamed = await chunks(gateway, **asked)
        alone = (await gateway.complete(**asked | {"max_tokens": 0})).json()
        one = (await gateway.complete(**asked | {"prompt": "h", "max_tokens": 0})).json()
    scoring = worker.submits[0].generation
    assert (scoring.prompt_ids, scoring.sampling.max_tokens) == (tuple(prompt[:1]), 5)
    assert worker.submits[1].generation.prompt_ids == tuple(prompt)
    assert len(worker.submits) == 2 * 2 + 1, "the choices of a prompt share what it scores"
    for choice in body["choices"]:
        found = choice["logprobs"]
        assert choice["text"] == "h\u20ac y" + TEXT
        assert found["tokens"][:5] == ["h", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", " "]
        assert found["text_offset"] == [0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7]
        scores = [-token_id / 64 for token_id in (*prompt[1:], *ids(TEXT))]
        assert found["token_logprobs"] == [None, *scores]
        assert found["top_logprobs"][0] is None and found["top_logprobs"][4] == {
            "!": 0.0,
            " ": scores[3],
        }
        parts = [c["logprobs"] for c in streamed if c["index"] == choice["index"] and c["logprobs"]]
        assert {key: [one for part in parts for one in part[key]] for key in found} == found
    assert alone["choices"][1]["logprobs"]["token_logprobs"] == [None, *scores[:5]]
    assert alone["usage"]["completion_tokens"] == 0
    assert one["choices"][0]["logprobs"]["token_logprobs"] == [None]


async def test_a_worker_that_writes_another_prompt_is_found_out(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated(script=answering("ey"))]) as gateway:
        answer = await gateway.complete("hex", echo=True, logprobs=0)
    assert answer.status_code == 500
    assert f"token 2 of the prompt came back as {ids('y')[0]}" in answer.text
