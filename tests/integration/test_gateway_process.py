"""``python -m gateway`` as a process: how it starts, how it stops, how it refuses to start."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from baton.http_limits import HeadLimits
from gateway.http_server import HttpServer, listen
from tests.fakes import MODEL, FakeWorker, answering, eventually, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--port", "0", "--admin-port", "0"),
        *("--rpc-port", "0", *arguments),
        stderr=asyncio.subprocess.PIPE,
    )


async def ready_urls(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """Public and admin URL from the one line that says so."""
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := (await process.stderr.readline()).decode():
            event = json.loads(line)
            if event["event"] == "ready":
                return event["url"], event["admin"]
    raise AssertionError("it ended before it was ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal(checkpoint: Path, number: signal.Signals) -> None:
    async with FakeWorker(local_prefill=True, script=answering("hello")) as worker:
        process = await start(
            *("--model", str(checkpoint), "--served-model-name", MODEL),
            *("--decode", worker.address, "--log-format", "json"),
        )
        url, admin = await ready_urls(process)
        async with httpx.AsyncClient(timeout=30) as client:
            async with asyncio.timeout(30):
                while (await client.get(f"{url}/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
            body = {"model": MODEL, "prompt": "hi"}
            answer = await client.post(f"{url}/v1/completions", json=body)
            assert answer.json()["choices"][0]["text"] == "hello"
            cluster = (await client.get(f"{admin}/cluster")).json()
            assert cluster["workers"][0]["state"] == "healthy"
        process.send_signal(number)
        rest = await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == 0
        assert "Traceback" not in rest[1].decode()


async def test_streams_that_do_not_end_are_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each as if its client had left, and without a word in the log."""
    monkeypatch.setattr("gateway.http_server.SHUTDOWN_GRACE", 0.2)
    ended = list[int]()

    async def ticks(number: int) -> AsyncIterator[str]:
        try:
            while True:
                yield "tick"
                await asyncio.sleep(0.01)
        finally:
            ended.append(number)

    async def endless(_: Request) -> Response:
        return EventSourceResponse(ticks(len(ended)))

    listening = listen("127.0.0.1", 0)
    limits = HeadLimits(connections=10, seconds=10.0, bytes=1000, fields=10, unread=10.0)
    server = HttpServer(Starlette(routes=[Route("/", endless)]), limits)
    host, port = listening.getsockname()
    serving = asyncio.create_task(server.serve([listening]))
    connections = [await asyncio.open_connection(host, port) for _ in range(3)]
    for reader, writer in connections:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"tick")
    server.stop()
    for reader, _ in connections:
        assert await reader.readuntil(b"tick"), "for a while they go on"
    await asyncio.wait_for(serving, 30)
    assert len(ended) == 3
    assert not [record for record in caplog.records if record.exc_info]
    for reader, writer in connections:
        await reader.read()
        writer.close()


async def test_a_kill_frees_what_runs(checkpoint: Path) -> None:
    script = answering("hello", stop_after=2)
    async with FakeWorker(local_prefill=True, script=script) as worker:
        process = await start(
            *("--model", str(checkpoint), "--served-model-name", MODEL),
            *("--decode", worker.address, "--log-format", "json"),
        )
        url, _ = await ready_urls(process)
        async with httpx.AsyncClient(timeout=30) as client:
            async with asyncio.timeout(30):
                while (await client.get(f"{url}/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
            body = {"model": MODEL, "prompt": "hi"}
            asking = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
            submitted = await worker.submitted(1)
            process.kill()
            with pytest.raises(httpx.HTTPError):
                await asking
        await process.wait()
        running = worker.sessions[0].scripts[submitted.key]
        await eventually(running.done)
        assert running.cancelled()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere", "--decode", "x:1"], r"gateway: /nowhere: neither a directory"),
        (["--model", "CHECKPOINT", "--decode", "x:1", "--retry-max", "0"], r"--retry-max"),
        (
            ["--model", "CHECKPOINT", "--decode", "x:1", "--port", "TAKEN"],
            r"cannot listen on .*TAKEN",
        ),
    ],
)
async def test_it_says_why_it_cannot_start(
    checkpoint: Path, arguments: list[str], words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await start(
            *(a.replace("CHECKPOINT", str(checkpoint)).replace("TAKEN", port) for a in arguments)
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    said = errors.decode().strip()
    assert len(said.splitlines()) == 1, said
    assert re.search(words.replace("TAKEN", port), said), said
