"""What strangers, users and operators get of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from baton.keys import ApiKey
from tests.fakes import MODEL, FakeWorker, write_checkpoint
from tests.gateways import Gateway, serving

ALICE = ApiKey.new()
KEY = {"Authorization": f"Bearer {ALICE.text}"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(json.dumps({"name": "alice", "id": ALICE.id, "hash": ALICE.hash}) + "\n")
    return file


def admin(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.admin_url, timeout=20)


async def about(client: httpx.AsyncClient) -> object:
    return (await client.get("/page/about")).json()


async def test_all_that_it_names_is_there_and_nothing_else(checkpoint: Path) -> None:
    async with serving(checkpoint, []) as gateway, admin(gateway) as operator:
        for client in (gateway.client, operator):
            page = await client.get("/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            named = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
            assert len(named) >= 6
            for path in named:
                file = await client.get(f"/{path}")
                assert file.status_code == 200, path
                assert file.headers["content-security-policy"].startswith("default-src 'self';")
                assert file.headers["x-content-type-options"] == "nosniff"
            tag = {"If-None-Match": page.headers["etag"]}
            assert (await client.get("/", headers=tag)).status_code == 304
            for path in ("/page/nothing", "/page/", "/page/%2e%2e/site.py", "/page/..%2fsite.py"):
                assert (await client.get(path)).status_code == 404


async def test_strangers_see_the_page_and_nothing_through_it(checkpoint: Path, keys: Path) -> None:
    async with (
        serving(checkpoint, [FakeWorker(local_prefill=True)], api_keys=keys) as gateway,
        admin(gateway) as operator,
    ):
        assert await about(gateway.client) == {"key": True, "live": "admin"}
        assert await about(operator) == {"key": True, "live": "here"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        for client in (gateway.client, operator):
            assert (await client.get("/")).status_code == 200
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
            models = (await client.get("/v1/models", headers=KEY)).json()
            assert [model["id"] for model in models["data"]] == [MODEL]
            answer = await client.post("/v1/chat/completions", json=body, headers=KEY)
            assert answer.json()["choices"][0]["finish_reason"]
        assert (await gateway.client.get("/live", headers=KEY)).status_code == 404


async def test_without_keys_all_of_it_is_on_both_ports(checkpoint: Path) -> None:
    async with serving(checkpoint, []) as gateway, admin(gateway) as operator:
        for client in (gateway.client, operator):
            assert await about(client) == {"key": False, "live": "here"}
    async with serving(checkpoint, [], live="off") as gateway, admin(gateway) as operator:
        for client in (gateway.client, operator):
            assert await about(client) == {"key": False, "live": "off"}
            assert (await client.get("/live")).status_code == 404


async def test_the_admin_port_bounds_a_body_as_the_other_does(checkpoint: Path) -> None:
    async with serving(checkpoint, [], max_body_bytes=100) as gateway, admin(gateway) as operator:
        refused = await operator.post("/v1/chat/completions", content=b"x" * 101)
        assert refused.status_code == 413
