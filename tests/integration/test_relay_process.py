"""``python -m gateway.relay`` as a process: how it starts, stops, dies, and how big it gets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes import FakeWorker, eventually
from tests.relays import FakePrefill, calling

MIB = 2**20
FLAGS = ("--port", "0", "--admin-port", "0", "--log-format", "json")


@dataclass(frozen=True, slots=True)
class Process:
    """A relay that is ready."""

    child: asyncio.subprocess.Process
    address: str
    admin: str

    async def end(self) -> str:
        """What it said after it was ready, when it has ended."""
        _, said = await asyncio.wait_for(self.child.communicate(), 20)
        return said.decode()


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.relay", *FLAGS, *arguments), stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def relay(prefill: FakeWorker, decode: FakeWorker) -> AsyncIterator[Process]:
    """A relay between two workers that it has found."""
    child = await start("--prefill", prefill.address, "--decode", decode.address)
    try:
        assert child.stderr is not None
        async with asyncio.timeout(60):
            while (event := json.loads(await child.stderr.readline()))["event"] != "ready":
                pass
        process = Process(child, event["address"], event["admin"])
        async with httpx.AsyncClient(timeout=20) as client, asyncio.timeout(60):
            while (await client.get(f"{process.admin}/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        yield process
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_forwards_until_a_signal(number: signal.Signals) -> None:
    async with FakePrefill() as p, FakeWorker() as d, relay(p, d) as process:
        async with calling(process.address) as caller:
            call = await caller.prefill(d.instance_id, p.instance_id)
            await call.read()
            async with httpx.AsyncClient(timeout=20) as client:
                workers = (await client.get(f"{process.admin}/cluster")).json()["workers"]
                assert {w["instance_id"] for w in workers} == {p.instance_id, d.instance_id}
                metrics = (await client.get(f"{process.admin}/metrics")).text
                assert "baton_relay_open_calls 1.0" in metrics
        async with grpc.aio.insecure_channel(process.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            health = await check(health_pb2.HealthCheckRequest(), timeout=20)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        await eventually(lambda: not p.calls)
        process.child.send_signal(number)
        assert "Traceback" not in await process.end()
        assert process.child.returncode == 0


async def test_killed_it_frees_both_ends() -> None:
    async with (
        FakePrefill(frames=[bytes(MIB)] * 64) as p,
        FakeWorker() as d,
        relay(p, d) as process,
        calling(process.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        reading = caller.read(p.token)
        await reading.read()
        process.child.kill()
        for stream in (call, reading):
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                while await stream.read() is not grpc.aio.EOF:
                    pass
            assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: not p.calls and not p.reads)


async def test_readers_that_take_nothing_do_not_fill_it() -> None:
    """64 hand-offs of 64 MiB wait. The bound is what --max-reads says of each stream."""
    streams, bound = 64, 5 * MIB
    async with (
        FakePrefill(frames=[bytes(MIB)] * 64) as p,
        FakeWorker() as d,
        relay(p, d) as process,
        calling(process.address) as caller,
    ):
        call = await caller.prefill(d.instance_id, p.instance_id)
        await call.read()
        assert sum([1 async for _ in caller.read(p.token)]) == 64
        memory = psutil.Process(process.child.pid).memory_info
        before, sent = memory().rss, -1
        calls = [call]
        for _ in range(streams):
            calls.append(await caller.prefill(d.instance_id, p.instance_id))
            caller.read((await calls[-1].read()).accepted.kv_token)
        await eventually(lambda: p.reads == streams, 30)
        async with asyncio.timeout(60):
            while sent != p.sent:  # until all stand still
                sent = p.sent
                await asyncio.sleep(1.0)
        assert memory().rss - before < streams * bound
        assert p.sent < 64 + streams * 8
        for call in calls:
            call.cancel()
        await eventually(lambda: not p.reads, 30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decode", "x:1"], "--prefill names no worker"),
        (["--prefill", "x:1"], "--decode names no worker"),
        (["--prefill", "x:1", "--decode", "x:2", "--max-calls", "0"], "--max-calls: .*given: '0'"),
        (["--prefill", "x:1", "--decode", "x:2", "--port", "TAKEN"], "cannot listen on .*TAKEN"),
    ],
)
async def test_it_says_why_it_cannot_start(arguments: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        child = await start(*(argument.replace("TAKEN", port) for argument in arguments))
        _, errors = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 2
    said = errors.decode().strip().splitlines()
    assert re.search(words.replace("TAKEN", port), said[-1]), said
