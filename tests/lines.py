"""Lines between two ends that a test can cut, stall, slow down and tamper with.

``TcpLine`` stands before a gRPC server, ``ShmLine`` before the Unix socket of a ``ShmOutlet``.
What is done to a line is done to its open connections, or for the length of a ``with``.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from baton.kv.shm.messages import MAX_BYTES
from baton.kv.shm.wire import listen

T = TypeVar("T")

#: What becomes of message number n of one direction of one connection: none, one or several.
Tamper = Callable[[int, T], list[T]]
Data = tuple[bytes, list[int]]  #: a message on a Unix socket, and its descriptors

_READ_BYTES = 64 * 2**10
_LOOK = 0.005  # seconds between looks at a stalled line

#: gRPC names the method in the clear: such a connection carries KV (see ``Connections``).
_KV_METHOD = b"KvService/Read"
#: A read of so many bytes on such a connection is within the payload of a block.
_PAYLOAD_BYTES = 4 * 2**10
_EVENT_END = re.compile(rb"\n\n")


def passing(_: int, data: T) -> list[T]:
    return [data]


class Connection:
    """Two sockets and what passes between them."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.kv = False  #: not known before the first call
        self.events = 0  #: server-sent ones that have passed
        self.held = False  #: nothing more passes to who connected
        self.close = close


class Line:
    """What lines have in common: their open connections, and how fast bytes pass."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._limits: list[tuple[float, bool, bool | None]] = []
        self._delays: list[float] = []

    def cut(self, kv_only: bool = False) -> int:
        """Break what is open, at once; returns how many connections that were."""
        hit = [c for c in self.connections if c.kv or not kv_only]
        for connection in hit:
            connection.close()
        return len(hit)

    @contextmanager
    def slow(self, rate: float, kv_only: bool = False, down: bool | None = None) -> Iterator[None]:
        """For the body a connection passes so many bytes per second; with 0 none at all. ``down``:
        only in the direction of who connected, or only in the other."""
        limit = (rate, kv_only, down)
        self._limits.append(limit)
        try:
            yield
        finally:
            self._limits.remove(limit)

    @contextmanager
    def late(self, seconds: float) -> Iterator[None]:
        """For the body what a connection passes comes so much later."""
        self._delays.append(seconds)
        try:
            yield
        finally:
            self._delays.remove(seconds)

    async def _wait(self, connection: Connection, nbytes: int, down: bool) -> None:
        """As long as so many bytes take."""
        while not (rate := self._rate(connection, down)):
            await asyncio.sleep(_LOOK)
        if rate < math.inf or self._delays:
            await asyncio.sleep(nbytes / rate + max(self._delays, default=0.0))

    def _rate(self, connection: Connection, down: bool) -> float:
        rates = (
            rate
            for rate, kv_only, direction in self._limits
            if (connection.kv or not kv_only) and direction in (None, down)
        )
        return min(rates, default=math.inf)

    async def _carry(self, connection: Connection, *directions: Awaitable[None]) -> None:
        """Until one direction ends; then the other is over too."""
        self.connections.add(connection)
        tasks = [asyncio.ensure_future(direction) for direction in directions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            connection.close()
            self.connections.discard(connection)


class TcpLine(Line):
    """Passes bytes on to whoever ``target()`` says, an address (host:port)."""

    def __init__(self, target: Callable[[], str]) -> None:
        super().__init__()
        self.address = ""  #: where to connect to, once it is open
        #: Of the next payload that comes down, if any: what is passed on instead.
        self.damage: Callable[[bytes], bytes] | None = None
        #: Server-sent events that each connection passes, if there is a limit; then nothing more.
        self.events: int | None = None
        self._target = target
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TcpLine]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            await self.close()

    async def close(self) -> None:
        """Break what is open, and wait until nothing passes any more."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="tcp line")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target().rpartition(":")
        try:
            there, onward = await asyncio.open_connection(host, int(port))
        except OSError:  # nobody is there, and so nobody is here
            writer.transport.abort()
            return

        def close() -> None:
            writer.transport.abort()
            onward.transport.abort()

        connection = Connection(close)
        up = self._pump(connection, reader, onward, down=False)
        await self._carry(connection, up, self._pump(connection, there, writer, down=True))

    async def _pump(
        self,
        connection: Connection,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        down: bool,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_READ_BYTES):
                if not down and _KV_METHOD in data:
                    connection.kv = True
                await self._wait(connection, len(data), down)
                if down and connection.kv and len(data) >= _PAYLOAD_BYTES and self.damage:
                    data, self.damage = self.damage(data), None
                if down and self.events is not None:
                    data = self._first_events(connection, data)
                target.write(data)
                await target.drain()
                if connection.held:
                    await asyncio.Event().wait()  # for the connection's end

    def _first_events(self, connection: Connection, data: bytes) -> bytes:
        """Of what comes down, what may pass."""
        for found in _EVENT_END.finditer(data):
            connection.events += 1
            if connection.events == self.events:
                connection.held = True
                return data[: found.end()]
        return data


class ShmLine(Line):
    """Listens at one Unix socket and passes on to another, message by message.

    Every message of the side that is connected to goes through ``down``, the others through
    ``up``. A message counts as ``message_bytes``, as it stands for a piece in shared memory.
    """

    def __init__(
        self,
        front: str,
        behind: str,
        *,
        down: Tamper[Data] = passing,
        up: Tamper[Data] = passing,
        message_bytes: int = 0,
    ) -> None:
        super().__init__()
        self._front, self._behind = front, behind
        self._down, self._up = down, up
        self._message_bytes = message_bytes

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ShmLine]:
        loop, listener = asyncio.get_running_loop(), listen(self._front)
        serving: set[asyncio.Task[None]] = set()

        def accept() -> None:
            with suppress(BlockingIOError):
                serving.add(asyncio.create_task(self._serve(listener.accept()[0])))

        loop.add_reader(listener, accept)
        try:
            yield self
        finally:
            loop.remove_reader(listener)
            listener.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, here: socket.socket) -> None:
        with here, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
            there.connect(self._behind)
            for end in (here, there):
                end.setblocking(False)

            def close() -> None:
                for end in (here, there):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

            connection = Connection(close)
            connection.kv = True
            await self._carry(
                connection,
                self._pump(connection, here, there, down=False),
                self._pump(connection, there, here, down=True),
            )

    async def _pump(
        self, connection: Connection, source: socket.socket, target: socket.socket, *, down: bool
    ) -> None:
        tamper = self._down if down else self._up
        with suppress(OSError):
            for number in itertools.count():
                data, descriptors = await _receive(source)
                try:
                    if not data:
                        return
                    await self._wait(connection, self._message_bytes, down)
                    for message, passed in tamper(number, (data, descriptors)):
                        socket.send_fds(target, [message], passed)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)


async def _receive(source: socket.socket) -> Data:
    """The next message; an empty one at the end."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    while True:
        with suppress(BlockingIOError):
            data, descriptors, _, _ = socket.recv_fds(source, MAX_BYTES + 1, 1)
            return data, descriptors
        readable.clear()
        loop.add_reader(source, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(source)
