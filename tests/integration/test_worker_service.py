"""What a worker says of itself: status, books, health while it computes, and its leaving."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton import channels, wire
from baton.v1 import worker_pb2, worker_pb2_grpc
from model.engine.mock_runner import CostModel
from model.worker import service
from tests.workers import (
    CONTEXT,
    VOCAB,
    Worker,
    cluster,
    gateway_identity,
    generation,
    prompt,
    session,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def watch_request(**changes: int) -> worker_pb2.WatchRequest:
    return worker_pb2.WatchRequest(identity=wire.identity_to_wire(gateway_identity(**changes)))


async def health(worker: Worker) -> int:
    async with channels.connect(worker.address, shared=False) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status


async def test_status_now_and_on_change() -> None:
    async with (
        cluster(cost=CostModel(step_s=0.05)) as c,
        session(c.decode[0]) as s,
        channels.connect(c.decode[0].address) as channel,
    ):
        watch = worker_pb2_grpc.WorkerServiceStub(channel).Watch(watch_request())
        status = await watch.read()
        assert wire.identity_from_wire(status.identity) == c.decode[0].runtime.identity
        assert list(status.roles) == [worker_pb2.ROLE_DECODE]
        assert (status.model, status.vocab_size) == ("mock", VOCAB)
        assert status.max_model_len == min(CONTEXT, 64 * 4)
        assert "grpc" in [t.name for t in status.transports]
        stream = s.submit(generation(prompt(30), max_tokens=20), c.prefill[0])
        seen = [status]
        while not stream.ended.done() or seen[-1].load.running:
            seen.append(await watch.read())
        assert [one.sequence for one in seen] == list(range(1, len(seen) + 1))
        assert any(one.load.running for one in seen)
        for one in seen:
            load = one.load
            blocks = load.blocks_free + load.blocks_cached + load.blocks_owned
            assert blocks + load.blocks_quarantined == 64
        watch.cancel()


async def test_bytes_that_are_no_request_are_refused_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        service = "/baton.v1.WorkerService"
        calls = [
            channel.unary_unary(f"{service}/CheckIntegrity")(b"\xff"),
            channel.unary_stream(f"{service}/Watch")(b"\xff").read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="no request of") as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


async def test_a_watcher_of_another_version_is_refused() -> None:
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        watch = worker_pb2_grpc.WorkerServiceStub(channel).Watch(watch_request(protocol=0))
        with pytest.raises(grpc.aio.AioRpcError, match="version 0 there"):
            await watch.read()


async def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands took the loop for themselves, so that gateways gave the worker up."""
    monkeypatch.setattr(service, "MOST_WATCHERS", 1)
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        first = stub.Watch(watch_request())
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError, match="1 watch it, as many as may"):
            await stub.Watch(watch_request()).read()
        first.cancel()
        async with asyncio.timeout(30):
            while True:
                again = stub.Watch(watch_request())
                with suppress(grpc.aio.AioRpcError):
                    if await again.read():
                        again.cancel()
                        return


async def test_the_books_over_the_wire() -> None:
    async with cluster(decode=0) as c, channels.connect(c.prefill[0].address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        report = await stub.CheckIntegrity(worker_pb2.CheckIntegrityRequest(idle=False))
        assert not report.violations
        assert report.load.blocks_free == 64
        assert report.calls == 0 and report.tasks_at_start > 0
        assert report.descriptors == report.descriptors_at_start


async def test_draining_is_told_and_health_follows() -> None:
    async with cluster(prefill=0) as c, channels.connect(c.decode[0].address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        assert await health(c.decode[0]) == SERVING
        assert (await stub.Drain(worker_pb2.DrainRequest(grace_ms=10))).handed_back == 0
        assert await health(c.decode[0]) == NOT_SERVING
        watch = stub.Watch(watch_request())
        assert (await watch.read()).draining
        watch.cancel()


#: Seconds of one that is computed while health is asked for.
STEP = 0.5


def burn(seconds: float) -> None:
    """Computes in Python, holding the interpreter lock as much as one thread can."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(100))


async def test_health_answers_while_the_engine_computes() -> None:
    """Well within a step, though this machine may be busy; a loop that waits for the engine
    answers between two."""
    asked = [generation(prompt(60, i), request_id=str(i), max_tokens=30) for i in range(3)]
    async with (
        cluster(prefill=0, num_blocks=128, cost=CostModel(step_s=STEP), sleep=burn) as c,
        session(c.decode[0]) as s,
        channels.connect(c.decode[0].address, shared=False) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        streams = [s.submit(each) for each in asked]
        await streams[0].progress.wait()
        took = []
        for _ in range(20):
            began = time.perf_counter()
            reply = await stub.Check(health_pb2.HealthCheckRequest())
            took.append(time.perf_counter() - began)
            assert reply.status == SERVING
            await asyncio.sleep(0.02)
        assert not streams[0].ended.done(), "the engine was idle"
        assert sorted(took)[len(took) // 2] < STEP / 3, took
        for stream in streams:
            s.cancel(stream)
