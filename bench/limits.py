"""What the machine can do at best: the same bytes, without Baton around them.

``bare grpc``   one message after another, the same bytes each time, on the same kind of channel;
                what arrives is counted and dropped
``tcp``         a blocking socket over loopback, pieces as long as those messages, into the pool
``memcpy``      one core copies as many bytes from elsewhere into the pool
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from baton import channels
from baton.errors import HandoffFailed
from baton.kv.connections import Connections
from baton.tasks import group
from bench.job import Job, Memory, Receiver, Sender, Where

_SERVICE, _METHOD = "bench.Bytes", "Stream"
_PATIENCE = 60.0  # seconds that a blocking thread waits for the other process


def pieces(job: Job) -> list[int]:
    """How long each message is, bytes; together they are the job's."""
    whole, rest = divmod(job.nbytes, job.message_bytes)
    return [job.message_bytes] * whole + ([rest] if rest else [])


def require(job: Job, came: int) -> None:
    """Raise HandoffFailed unless all bytes came."""
    if came != job.nbytes:
        raise HandoffFailed(f"{came} bytes came over {job.path}, {job.nbytes} were expected")


class BareGrpcSender:
    """Serves one method that says the job's number of bytes."""

    def __init__(self) -> None:
        self.address = ""  #: once it is served
        self._job: Job | None = None

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        self._job = job
        yield {"address": self.address}

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        method = grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})

    async def _stream(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        assert self._job is not None, "it is called while a job is offered"
        messages = {length: bytes(length) for length in {*pieces(self._job)}}
        for length in pieces(self._job):
            await context.write(messages[length])


class BareGrpcReceiver:
    """Counts what comes."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def read(self, job: Job, where: Where) -> None:
        came, address = 0, where["address"]
        async with self._connections.to("bare", address, "bench") as connection:
            method = connection.channel.unary_stream(f"/{_SERVICE}/{_METHOD}", None, None)
            async for message in method(b""):
                came += len(message)
        require(job, came)


@asynccontextmanager
async def bare_grpc_sender(_: Job, __: Memory) -> AsyncIterator[Sender]:
    sender, server = BareGrpcSender(), channels.server()
    server.add_generic_rpc_handlers((sender.handler(),))
    sender.address = f"127.0.0.1:{channels.bind(server, '127.0.0.1', 0)}"
    await server.start()
    try:
        yield sender
    finally:
        await server.stop(None)


@asynccontextmanager
async def bare_grpc_receiver(_: Job, __: Memory) -> AsyncIterator[Receiver]:
    connections = Connections()
    try:
        yield BareGrpcReceiver(connections)
    finally:
        await connections.close()


class TcpSender:
    """Sends what is in memory over one connection, on a thread that blocks."""

    def __init__(self, listener: socket.socket, memory: Memory) -> None:
        self._listener = listener
        self._memory = memory

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        async with group() as tasks:
            tasks.create_task(asyncio.to_thread(self._serve, job))
            yield {"port": str(self._listener.getsockname()[1])}

    def _serve(self, job: Job) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_PATIENCE)
            view, start = self._memory.data, 0
            for length in pieces(job):
                connection.sendall(view[start : start + length])
                start += length


class TcpReceiver:
    """Receives straight into memory, on a thread that blocks."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def read(self, job: Job, where: Where) -> None:
        await asyncio.to_thread(self._receive, job, int(where["port"]))

    def _receive(self, job: Job, port: int) -> None:
        view, came, longest = self._memory[: job.nbytes].data, 0, max(pieces(job))
        with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
            while count := connection.recv_into(view[came : came + longest]):
                came += count
        require(job, came)


@asynccontextmanager
async def tcp_sender(_: Job, memory: Memory) -> AsyncIterator[Sender]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_PATIENCE)
        yield TcpSender(listener, memory)


@asynccontextmanager
async def tcp_receiver(_: Job, memory: Memory) -> AsyncIterator[Receiver]:
    yield TcpReceiver(memory)


class Memcpy:
    """Both ends: the sender has nothing to do, the receiver copies as many bytes as it has."""

    def __init__(self, source: Memory, target: Memory) -> None:
        self._source = source
        self._target = target

    @asynccontextmanager
    async def offer(self, job: Job) -> AsyncIterator[Where]:
        yield {}

    async def read(self, job: Job, _: Where) -> None:
        np.copyto(self._target[: job.nbytes], self._source[: job.nbytes])


@asynccontextmanager
async def memcpy_sender(_: Job, memory: Memory) -> AsyncIterator[Sender]:
    yield Memcpy(memory, memory)


@asynccontextmanager
async def memcpy_receiver(job: Job, memory: Memory) -> AsyncIterator[Receiver]:
    source: Memory = np.full(job.nbytes, 1, dtype=np.uint8)
    yield Memcpy(source, memory)
