"""An answer that one gateway began is finished by another, from what its client has; whatever
cannot be the beginning of an answer is refused, and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import CLASS, EOS, VOCAB_SIZE, FakeWorker, answering, ids, write_checkpoint
from tests.gateways import Gateway, events, serving

TEXT = "one two thrée €uro 😀 six"
TOKENS = [*ids(TEXT), EOS]
SEED = 1234


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(text: str = TEXT, **worker: Any) -> FakeWorker:
    return FakeWorker(script=answering(text), local_prefill=True, **worker)


class Stream:
    """What came of a stream, chunk by chunk."""

    def __init__(self, data: list[str]) -> None:
        self.chunks = [json.loads(line) for line in data if line != "[DONE]"]
        self.done = data[-1] == "[DONE]"
        self.usage = self.chunks[-1].get("usage")

    def until(self, chunks: int) -> tuple[list[int], str]:
        """Token ids and text of the first so many."""
        choices = [choice for chunk in self.chunks[:chunks] for choice in chunk["choices"]]
        tokens = [i for choice in choices for i in choice.get("token_ids", [])]
        return tokens, "".join(choice["text"] for choice in choices)

    def resume(self, tokens: list[int]) -> dict[str, Any]:
        """What a client sends that has so many."""
        told = dict(self.chunks[0]["baton"])
        del told["request_id"]
        return {**told, "generated_ids": tokens}


async def stream(gateway: Gateway, **body: Any) -> Stream:
    usage = {"include_usage": True}
    answer = await gateway.complete(
        stream=True, stream_options=usage, return_token_ids=True, **body
    )
    assert answer.status_code == 200, answer.text
    return Stream(await events(answer))


async def test_it_goes_on_with_the_next_token_wherever_it_was_cut(checkpoint: Path) -> None:
    """In the middle of a character, and of what may become a stop string, too."""
    stop = ["😀 seven"]
    async with serving(checkpoint, [colocated()]) as first:
        whole = await stream(first, seed=SEED, stop=stop)
        tokens, text = whole.until(len(whole.chunks))
        assert (tokens, text) == (TOKENS, TEXT)
    async with serving(checkpoint, [colocated()]) as second:
        for cut in range(len(whole.chunks)):
            had, seen = whole.until(cut)
            if len(had) == len(TOKENS):
                break
            rest = await stream(second, stop=stop, baton_resume=whole.resume(had))
            more, unseen = rest.until(len(rest.chunks))
            assert had + more == TOKENS
            assert seen + unseen == TEXT
            assert rest.usage == whole.usage
            assert rest.done
        assert second.metric("baton_resumes_total", outcome="accepted") == cut
        assert second.metric("baton_time_to_first_token_seconds_count") == cut


async def test_the_worker_is_asked_for_what_is_left(checkpoint: Path) -> None:
    worker = colocated()
    async with serving(checkpoint, [worker]) as gateway:
        begun = await stream(gateway, seed=SEED, max_tokens=20)
        resume = {**begun.resume(TOKENS[:7]), "choice": 3}
        rest = await stream(gateway, max_tokens=20, baton_resume=resume)
    first, second = (submitted.generation for submitted in worker.submits)
    assert second.prompt_ids == first.prompt_ids
    assert second.generated_ids == tuple(TOKENS[:7])
    assert second.sampling == first.sampling
    assert second.key.choice_index == 3, "its draws depend on it"
    assert second.key.request_id != first.key.request_id
    assert {choice["index"] for chunk in rest.chunks for choice in chunk["choices"]} == {3}


async def test_a_whole_answer_has_the_rest(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated()]) as gateway:
        resume = {"generated_ids": TOKENS[:4], "seed": SEED}
        body = (await gateway.complete(baton_resume=resume)).json()
        told = body["baton"]
        assert body["choices"][0]["text"] == TEXT[4:]
        assert body["usage"]["completion_tokens"] == len(TOKENS)
        resume |= {"prompt_digest": told["prompt_digest"], "workers": told["workers"]}
        assert (await gateway.complete(baton_resume=resume)).json()["usage"] == body["usage"]


async def test_it_goes_on_in_its_class_alone(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated()]) as gateway:
        begun = await stream(gateway)

    def newer() -> FakeWorker:
        return colocated(compatibility=replace(CLASS, model_revision="toy-2"), blocks_free=10**6)

    async with serving(checkpoint, [newer()]) as gateway:
        answer = await gateway.complete(baton_resume=begun.resume(TOKENS[:3]))
        assert answer.status_code == 503
        assert begun.chunks[0]["baton"]["workers"] in answer.json()["error"]["message"]
    same = colocated()
    async with serving(checkpoint, [newer(), same]) as gateway:
        for cut in range(5):
            await stream(gateway, baton_resume=begun.resume(TOKENS[:cut]))
    assert len(same.submits) == 5, "the other has more room"


REFUSED = {
    "no seed": ({"seed": None}, "no seed"),
    "seed out of range": ({"seed": -1}, "at least 0"),
    "another prompt": ({"prompt_digest": "00" * 16}, "this prompt's is"),
    "no token of ours": ({"generated_ids": [VOCAB_SIZE]}, f"ids are 0 to {VOCAB_SIZE - 1}"),
    "below the vocabulary": ({"generated_ids": [-1]}, "token id -1"),
    "too many": ({"generated_ids": [65] * 41}, "41 generated_ids, but max_tokens is 40"),
    "all there are": ({"generated_ids": [65] * 40}, "finished: 'length', with token 40 of 40"),
    "it has ended": ({"generated_ids": [65, EOS]}, "finished: 'stop', with token 2 of 2"),
    "it had ended": ({"generated_ids": [EOS, 65]}, "finished: 'stop', with token 1 of 2"),
    "it was stopped": ({"generated_ids": ids("abc, and more")}, "a stop string is complete"),
    "no such choice": ({"choice": 128}, "at most 127"),
    "no ids": ({"generated_ids": "AB"}, "valid array"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_forged_and_mismatching_ones_are_refused_and_counted(
    checkpoint: Path, case: str
) -> None:
    change, words = REFUSED[case]
    resume: dict[str, Any] = {"seed": SEED, "generated_ids": [65]}
    worker = colocated()
    async with serving(checkpoint, [worker]) as gateway:
        answer = await gateway.complete(
            max_tokens=40, stop="c, and", stream=True, baton_resume=resume | change
        )
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"].startswith("baton_resume")
        assert gateway.metric("baton_resumes_total", outcome="refused") == 1
    assert worker.submits == []


async def test_who_has_all_of_it_is_told_how_it_ended(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated()]) as gateway:
        whole = await gateway.complete(baton_resume={"seed": SEED, "generated_ids": TOKENS})
        full = await gateway.complete(
            max_tokens=2, baton_resume={"seed": SEED, "generated_ids": TOKENS[:2]}
        )
    said = [answer.json()["error"] for answer in (whole, full)]
    assert [error["code"] for error in said] == ["answer_finished"] * 2
    assert [error["finish_reason"] for error in said] == ["stop", "length"]


async def test_what_does_not_go_with_it_is_refused(checkpoint: Path) -> None:
    resume = {"seed": SEED, "generated_ids": [65]}
    async with serving(checkpoint, [colocated()]) as gateway:
        several = await gateway.complete(n=2, baton_resume=resume)
        another = await gateway.complete(seed=SEED + 1, baton_resume=resume)
        unknown = await gateway.complete(baton_resume={**resume, "tokens": 3})
        assert gateway.metric("baton_resumes_total", outcome="refused") == 3
    assert "n is 2" in several.json()["error"]["message"]
    assert f"the request's own is {SEED + 1}" in another.json()["error"]["message"]
    assert unknown.json()["error"]["param"] == "baton_resume.tokens"
    assert {answer.status_code for answer in (several, another, unknown)} == {400}
