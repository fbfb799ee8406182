"""Who is let in, how much each may ask for, and what the prefix cache tells one of another."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.keys import ApiKey
from tests.fakes import MODEL, FakeWorker, answering, eventually, write_checkpoint
from tests.gateways import Gateway, serving

ALICE, BOB = ApiKey.new(), ApiKey.new()
BODY = {"model": MODEL, "prompt": "hi"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**worker: Any) -> FakeWorker:
    return FakeWorker(local_prefill=True, **worker)


def line(name: str, key: ApiKey, **limits: Any) -> str:
    return json.dumps({"name": name, "id": key.id, "hash": key.hash, **limits}) + "\n"


def put(file: Path, *lines: str) -> Path:
    """As an operator should: never half a file."""
    beside = file.with_suffix(".new")
    beside.write_text("".join(lines))
    os.replace(beside, file)  # noqa: PTH105
    return file


async def ask(gateway: Gateway, key: ApiKey | None, **body: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key.text}"}
    return await gateway.client.post("/v1/completions", json=BODY | body, headers=headers)


async def test_only_known_keys_are_let_in(checkpoint: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "keys", line("alice", ALICE))
    async with serving(checkpoint, [colocated()], api_keys=file) as gateway:
        assert (await ask(gateway, ALICE)).status_code == 200
        for key in (None, BOB, ApiKey(ALICE.id, BOB.secret)):
            refused = await ask(gateway, key)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            error = refused.json()["error"]
            assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert gateway.metric("baton_refusals_total", reason="invalid_api_key") == 3
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            assert (await gateway.client.get(path)).status_code == 401
        assert (await gateway.client.get("/health")).status_code == 200
        ready = await gateway.client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_without_its_worker_ready_names_none_to_strangers(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = put(tmp_path / "keys", line("alice", ALICE))
    async with serving(checkpoint, [], api_keys=file) as gateway:
        ready = await gateway.client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})
        async with httpx.AsyncClient(base_url=gateway.admin_url, timeout=20) as admin:
            assert "127.0.0.1" in str((await admin.get("/ready")).json())


async def test_a_stranger_is_refused_before_its_body_is_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = put(tmp_path / "keys", line("alice", ALICE))
    async with serving(checkpoint, [colocated()], api_keys=file) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n{")
        assert b"401" in await asyncio.wait_for(reader.readline(), 30)
        writer.close()


async def test_the_file_is_read_again_when_it_changes(checkpoint: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "keys", line("alice", ALICE))

    async def until(key: ApiKey, status: int) -> None:
        async with asyncio.timeout(20):
            while (await ask(gateway, key)).status_code != status:
                await asyncio.sleep(0.05)

    async with serving(checkpoint, [colocated()], api_keys=file) as gateway:
        put(file, line("bob", BOB))
        await until(BOB, 200)
        assert (await ask(gateway, ALICE)).status_code == 401
        put(file, "nonsense")
        await asyncio.sleep(1.2)
        assert (await ask(gateway, BOB)).status_code == 200, "a broken file changes nothing"
        put(file, line("alice", ALICE), line("bob", BOB, concurrent=1))
        await until(ALICE, 200)


async def test_each_key_has_limits_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    worker = colocated(script=answering("hello", stop_after=2))
    file = put(
        tmp_path / "keys",
        line("alice", ALICE, concurrent=2, tokens_per_minute=60),
        line("bob", BOB, requests_per_minute=2),
    )
    async with serving(checkpoint, [worker], api_keys=file) as gateway:
        running = [asyncio.create_task(ask(gateway, ALICE)) for _ in range(2)]
        await worker.submitted(2)
        refused = await ask(gateway, ALICE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            429,
            "rate_limit_exceeded",
        )
        assert "at most 2 at once" in refused.json()["error"]["message"]
        for task in running:
            task.cancel()
        await worker.cancelled(2)
        worker.script = answering("hello")
        assert (await ask(gateway, ALICE, prompt=[1] * 50)).status_code == 200
        refused = await ask(gateway, ALICE, prompt=[1] * 30)
        assert refused.status_code == 429
        assert 20 <= int(refused.headers["retry-after"]) <= 25  # (30 + 50 + 2 * 2 - 60) seconds
        for status in (200, 400, 429):  # what is wrong counts as well
            body = {"temperature": -1} if status == 400 else {}
            assert (await ask(gateway, BOB, **body)).status_code == status
        assert gateway.metric("baton_refusals_total", reason="rate_limit_exceeded") == 3
    assert len(worker.submits) == 4


async def test_a_key_may_be_bounded_in_its_priority(checkpoint: Path, tmp_path: Path) -> None:
    worker = colocated()
    file = put(
        tmp_path / "keys", line("alice", ALICE, best_priority=7), line("bob", BOB, best_priority=-9)
    )
    async with serving(checkpoint, [worker], api_keys=file) as gateway:
        for key, asked, status in (
            (ALICE, {}, 200),
            (ALICE, {"priority": 8}, 200),
            (ALICE, {"priority": 6}, 400),
            (BOB, {}, 200),
            (BOB, {"priority": -9}, 200),
            (BOB, {"priority": -10}, 400),
        ):
            answer = await ask(gateway, key, **asked)
            assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("priority", "invalid_request")
        assert "-10, but this API key may ask for -9 at best" in error["message"]
    assert [-each.generation.priority for each in worker.submits] == [7, 8, 0, -9]


@pytest.mark.parametrize("scope", ["key", "global"])
async def test_the_cache_is_salted_per_key_unless_shared(
    checkpoint: Path, tmp_path: Path, scope: str
) -> None:
    worker = colocated()
    file = put(tmp_path / "keys", line("alice", ALICE), line("bob", BOB))
    async with serving(checkpoint, [worker], api_keys=file, cache_scope=scope) as gateway:
        for key in (ALICE, BOB, ALICE):
            assert (await ask(gateway, key)).status_code == 200
    first, second, third = (s.generation.cache_salt for s in worker.submits)
    assert first == third
    assert (first == second) is (scope == "global")
    assert (first == b"") is (scope == "global")


async def test_browsers_are_let_in_from_named_pages_only(checkpoint: Path, tmp_path: Path) -> None:
    page = {"Origin": "https://chat.example"}
    wish = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with serving(checkpoint, [colocated()]) as gateway:
        answer = await gateway.client.post("/v1/completions", json=BODY, headers=page)
        assert "access-control-allow-origin" not in answer.headers
        assert (await gateway.client.options("/v1/completions", headers=wish)).status_code == 405
    file = put(tmp_path / "keys", line("alice", ALICE))
    settings: dict[str, Any] = {"api_keys": file, "cors_origin": ["https://chat.example"]}
    async with serving(checkpoint, [colocated()], **settings) as gateway:
        allowed = await gateway.client.options("/v1/completions", headers=wish)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        other = wish | {"Origin": "https://evil.example"}
        refused = await gateway.client.options("/v1/completions", headers=other)
        assert "access-control-allow-origin" not in refused.headers
        stranger = await gateway.client.post("/v1/completions", json=BODY, headers=page)
        assert stranger.status_code == 401
        assert stranger.headers["access-control-allow-origin"] == "https://chat.example"


async def test_an_answer_that_streams_is_running(checkpoint: Path, tmp_path: Path) -> None:
    worker = colocated(script=answering("hello", stop_after=2))
    file = put(tmp_path / "keys", line("alice", ALICE, concurrent=1))
    async with serving(checkpoint, [worker], api_keys=file) as gateway:
        headers = {"Authorization": f"Bearer {ALICE.text}"}
        body = BODY | {"stream": True}
        async with gateway.client.stream(
            "POST", "/v1/completions", json=body, headers=headers
        ) as stream:
            await anext(stream.aiter_lines())
            assert (await ask(gateway, ALICE)).status_code == 429
        worker.script = answering("hello")
        await eventually(lambda: gateway.metric("baton_open_streams") == 0)
        assert (await ask(gateway, ALICE)).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example"])
async def test_a_strangers_page_gets_nothing_by_a_name_of_its_own(
    checkpoint: Path, tmp_path: Path, host: str
) -> None:
    """It may have its name lead to 127.0.0.1, and a browser there tells it what it gets."""
    file = put(tmp_path / "keys", line("alice", ALICE))
    named = {"host": host}
    for settings in ({}, {"api_keys": file}, {"api_keys": file, "allowed_hosts": ["api.example"]}):
        async with serving(checkpoint, [colocated()], **settings) as gateway:
            for url in (gateway.url, gateway.admin_url):
                answer = await gateway.client.get(f"{url}/", headers=named)
                # Who needs a key is not asked by strangers; a proxy may pass its own name on.
                open_to_names = url == gateway.url and list(settings) == ["api_keys"]
                assert answer.status_code == (200 if open_to_names else 421)
                if not open_to_names:
                    assert answer.json()["error"]["code"] == "host_not_known"
            refused = gateway.metric("baton_refusals_total", reason="host_not_known")
            assert refused == (1 if list(settings) == ["api_keys"] else 2)


@pytest.mark.parametrize(
    "host", ["localhost:8001", "[::1]:8001", "10.0.0.7", "gateway", "a.localhost", "API.example:80"]
)
async def test_names_that_nobody_can_take_are_answered(checkpoint: Path, host: str) -> None:
    async with serving(checkpoint, [], allowed_hosts=["api.example"]) as gateway:
        for url in (gateway.url, gateway.admin_url):
            answer = await gateway.client.get(f"{url}/health", headers={"host": host})
            assert answer.status_code == 200


async def test_elsewhere_than_on_loopback_any_name_is_answered(checkpoint: Path) -> None:
    named = {"host": "api.example"}
    everywhere = {"host": "0.0.0.0", "admin_host": "0.0.0.0"}
    for settings in (everywhere, {"allowed_hosts": ["*"]}):
        async with serving(checkpoint, [], **settings) as gateway:
            for url in (gateway.url, gateway.admin_url):
                assert (await gateway.client.get(f"{url}/health", headers=named)).status_code == 200
