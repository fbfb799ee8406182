"""A gateway in the test's own loop, behind a real uvicorn, in front of scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from baton.settings import GatewaySettings
from gateway.fleet import Health
from gateway.http_server import HttpServer, listen
from gateway.service import Service, running
from gateway.tokenizer import load
from tests.fakes import MODEL, FakeWorker, eventually


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a test talks to."""

    url: str
    admin_url: str
    client: httpx.AsyncClient
    service: Service

    def metric(self, name: str, **labels: str) -> float:
        """Value of a sample; 0 when there is none yet."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until_healthy(self, count: int) -> None:
        """Wait for so many healthy workers."""
        await eventually(
            lambda: sum(m.health is Health.HEALTHY for m in self.service.registry.members) == count
        )

    async def until_generated(self, tokens: int) -> None:
        """Wait until so many tokens of all requests have come from workers."""
        await eventually(lambda: self.metric("baton_generation_tokens_total") >= tokens)

    async def complete(self, prompt: object = "hi", **body: Any) -> httpx.Response:
        """POST /v1/completions."""
        return await self.client.post(
            "/v1/completions", json={"model": MODEL, "prompt": prompt, **body}
        )

    async def chat(self, text: str = "hi", **body: Any) -> httpx.Response:
        """POST /v1/chat/completions with one user message."""
        messages = [{"role": "user", "content": text}]
        return await self.client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages, **body}
        )


@asynccontextmanager
async def serving(
    checkpoint: Path,
    workers: Sequence[FakeWorker],
    *,
    healthy: int | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Start workers and gateway; wait until the workers are healthy. Afterwards nothing is left."""
    defaults: dict[str, Any] = {
        "model": str(checkpoint),
        "served_model_name": MODEL,
        "rpc_port": 0,
        "heartbeat_interval": 0.2,
        "retry_initial": 0.01,
        "retry_max": 0.05,
        "retry_budget": 10.0,
    }
    for worker in workers:
        await worker.__aenter__()
    try:
        if "membership" not in settings:
            defaults["decode"] = [worker.address for worker in workers] or ["127.0.0.1:1"]
        chosen = GatewaySettings(**{**defaults, **settings})
        async with (
            running(chosen, load(chosen.model)) as service,
            _http(service, chosen) as gateway,
        ):
            await gateway.until_healthy(len(workers) if healthy is None else healthy)
            yield gateway
            await eventually(lambda: gateway.metric("baton_open_streams") == 0)
            assert gateway.metric("baton_queue_tokens") == 0
    finally:
        for worker in workers:
            await worker.kill()
        # sse-starlette's own, one for each loop, for ever.
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__name__", "") == "_shutdown_watcher":
                task.cancel()


@asynccontextmanager
async def _http(service: Service, settings: GatewaySettings) -> AsyncIterator[Gateway]:
    sockets = [listen("127.0.0.1", 0), listen("127.0.0.1", 0)]
    servers = [
        HttpServer(app, settings.head_limits, service.metrics.refused_connection)
        for app in (service.public, service.admin)
    ]
    tasks = [
        asyncio.create_task(server.serve([listening]))
        for server, listening in zip(servers, sockets, strict=True)
    ]
    urls = [f"http://127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    try:
        async with httpx.AsyncClient(base_url=urls[0], timeout=20) as client:
            yield Gateway(urls[0], urls[1], client, service)
    finally:
        for server in servers:
            server.stop()
        await asyncio.gather(*tasks)


async def events(response: httpx.Response) -> list[str]:
    """The data of every event of a stream."""
    return [line.removeprefix("data: ") async for line in response.aiter_lines() if "data" in line]
