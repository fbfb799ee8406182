"""A TCP proxy before a worker, which can break its connections, or pass nothing on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

_READ_BYTES = 64 * 2**10


class Line:
    """Passes bytes on to ``target``, host:port, both ways."""

    def __init__(self, target: str) -> None:
        self.address = ""  #: where to connect to, once it is open
        self._target = target
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection that is open."""
        for task in self._connections:
            task.cancel()

    def partition(self) -> None:
        """Pass nothing on from here; connections stay open, and new ones are accepted."""
        self._passing.clear()

    def heal(self) -> None:
        """Pass on again."""
        self._passing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        ends = [writer]
        try:
            with suppress(OSError):
                there, onward = await asyncio.open_connection(host, int(port))
                ends.append(onward)
                await self._carry(self._pump(reader, onward), self._pump(there, writer))
        finally:
            for end in ends:
                end.transport.abort()

    async def _carry(self, *pumps: Coroutine[None, None, None]) -> None:
        """Until one way has ended."""
        tasks = [asyncio.create_task(pump) for pump in pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(_READ_BYTES):
            await self._passing.wait()
            target.write(data)
            await target.drain()
