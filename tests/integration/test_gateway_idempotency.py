"""Requests with an Idempotency-Key: the answer of the first, whole, streamed, late and never."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.generation import FinishReason
from baton.keys import ApiKey
from tests.fakes import (
    MODEL,
    FakeSession,
    FakeWorker,
    Submitted,
    answering,
    eventually,
    write_checkpoint,
)
from tests.gateways import Gateway, serving


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


async def ask(
    gateway: Gateway, key: str, prompt: str = "hi", headers: Any = (), **body: Any
) -> httpx.Response:
    return await gateway.client.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": prompt, **body},
        headers={"Idempotency-Key": key, **dict(headers)},
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_request_gets_the_stored_answer(checkpoint: Path, stream: bool) -> None:
    worker = colocated(script=answering("hello"))
    async with serving(checkpoint, [worker]) as gateway:
        first = await ask(gateway, "k", stream=stream)
        again = await ask(gateway, "k", stream=stream)
        other = await ask(gateway, "l", stream=stream)
        changed = await ask(gateway, "k", "ho", stream=stream)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    assert stream or first.json()["choices"][0]["text"] == "hello"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert other.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(worker.submits) == 2
    assert changed.status_code == 422
    assert changed.json()["error"]["code"] == "idempotency_conflict"


async def test_one_that_comes_meanwhile_joins_and_misses_nothing(checkpoint: Path) -> None:
    go_on = asyncio.Event()

    async def script(session: FakeSession, submitted: Submitted) -> None:
        session.tokens(submitted.key, 0, [60])
        await go_on.wait()
        await answering("]hello")(session, _from(submitted, 60))

    worker = colocated(script=script)
    async with serving(checkpoint, [worker]) as gateway:
        asked = [asyncio.create_task(ask(gateway, "k", stream=True)) for _ in range(3)]
        await eventually(lambda: gateway.metric("baton_repeated_total") == 2)
        go_on.set()
        answers = [await one for one in asked]
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].text.endswith("data: [DONE]\n\n")
    assert len(worker.submits) == 1


def _from(submitted: Submitted, *token_ids: int) -> Submitted:
    """As if these had been generated before."""
    generation = replace(submitted.generation, generated_ids=token_ids)
    return replace(submitted, generation=generation)


async def test_it_goes_on_without_its_client_and_waits_for_it(checkpoint: Path) -> None:
    go_on = asyncio.Event()

    async def script(session: FakeSession, submitted: Submitted) -> None:
        await go_on.wait()
        await answering("hello")(session, submitted)

    worker = colocated(script=script)
    async with serving(checkpoint, [worker], idempotency_grace=60) as gateway:
        leaving = asyncio.create_task(ask(gateway, "k"))
        await worker.submitted(1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        coming = asyncio.create_task(ask(gateway, "k"))
        go_on.set()
        answer = await coming
    assert answer.json()["choices"][0]["text"] == "hello"
    assert len(worker.submits) == 1 and not worker.cancels


async def test_nobody_comes_back(checkpoint: Path) -> None:
    worker = colocated(script=answering("hello", stop_after=2))
    async with serving(checkpoint, [worker], idempotency_grace=0.1) as gateway:
        leaving = asyncio.create_task(ask(gateway, "k", stream=True))
        await worker.submitted(1)
        leaving.cancel()
        await worker.cancelled(1)
        await eventually(lambda: gateway.metric("baton_requests_total", code="499") == 1)
        worker.script = answering("hello")
        assert (await ask(gateway, "k", stream=True)).status_code == 200
    assert len(worker.submits) == 2


async def test_what_fails_is_told_to_all_and_forgotten(checkpoint: Path) -> None:
    worker = colocated(script=answering("hello"))
    async with serving(checkpoint, [worker]) as gateway:
        refused = [await ask(gateway, "k", max_tokens=0) for _ in range(2)]
        assert [answer.status_code for answer in refused] == [400, 400]
        assert "idempotent-replayed" not in refused[1].headers
        assert (await ask(gateway, "k")).status_code == 200, "another request may have its key"
        assert (await ask(gateway, "x" * 256)).status_code == 400
    assert len(worker.submits) == 1


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"idempotency_seconds": 0.001}, []),
        ({"idempotency_answers": 2}, ["b", "c"]),
        ({"idempotency_bytes": 1300}, ["b", "c"]),
        ({"idempotency_bytes": 10}, []),
    ],
)
async def test_what_is_kept_is_bounded(
    checkpoint: Path, settings: dict[str, Any], kept: list[str]
) -> None:
    worker = colocated(script=answering("hello" * 20))
    async with serving(checkpoint, [worker], **settings) as gateway:
        sizes = [len((await ask(gateway, key)).content) for key in "abc"]
        assert all(500 < size < 640 for size in sizes), sizes
        await asyncio.sleep(0.01)
        found = [key for key in "cba" if "idempotent-replayed" in (await ask(gateway, key)).headers]
    assert sorted(found) == kept


async def test_keys_of_two_callers_have_nothing_in_common(checkpoint: Path, tmp_path: Path) -> None:
    keys = [ApiKey.new(), ApiKey.new()]
    lines = [f'{{"name": "n{i}", "id": "{k.id}", "hash": "{k.hash}"}}' for i, k in enumerate(keys)]
    path = tmp_path / "keys"
    path.write_text("\n".join(lines))
    worker = colocated(script=answering("hello"))
    async with serving(checkpoint, [worker], api_keys=path) as gateway:
        for key in keys:
            headers = {"Authorization": f"Bearer {key.text}"}
            answer = await ask(gateway, "k", headers=headers)
            assert answer.status_code == 200 and "idempotent-replayed" not in answer.headers
    assert len(worker.submits) == 2


async def test_what_goes_on_without_its_client_counts_for_its_key(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Or a key for one request at once would get any number: each left, and going on."""
    alice = ApiKey.new()
    file = tmp_path / "keys"
    line = {"name": "alice", "id": alice.id, "hash": alice.hash, "concurrent": 1}
    file.write_text(json.dumps(line) + "\n")
    go_on = asyncio.Event()

    async def script(session: FakeSession, submitted: Submitted) -> None:
        session.tokens(submitted.key, 0, [70])
        await go_on.wait()
        session.finish(submitted.key, FinishReason.LENGTH)

    worker = colocated(script=script)
    async with serving(checkpoint, [worker], api_keys=file) as gateway:
        gateway.client.headers["Authorization"] = f"Bearer {alice.text}"

        first = asyncio.create_task(ask(gateway, "one", stream=True))
        await worker.submitted(1)
        first.cancel()
        async with asyncio.timeout(30):
            while "go on without" not in (refused := await ask(gateway, "two")).text:
                assert refused.status_code == 429
        again = asyncio.create_task(ask(gateway, "one", stream=True))  # who comes back is let in
        await eventually(lambda: gateway.metric("baton_repeated_total") == 1)
        go_on.set()
        assert (await again).status_code == 200
        assert len(worker.submits) == 1
