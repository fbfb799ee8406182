"""A NIXL agent as the event loop sees it. Nothing here ever waits for a call to NIXL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from baton.errors import PeerError
from baton.kv.nixl import Unusable
from baton.kv.nixl.api import OWN, Api, Handle
from baton.kv.nixl.seals import SEAL_BYTES, Seals
from baton.kv.nixl.thread import AgentThread, Books, Call, OnEnd, Read
from baton.kv.transport import Region
from baton.tasks import finish

#: Seconds that a READ which nobody wants any more gets to end by itself.
PATIENCE = 1.0


class Agent:
    """Its pool and its seals are registered from ``start`` to the end.

    It ends with ``close``, with a READ that will not end, or with an error of NIXL's after which
    nothing is certain; ``ended`` tells. What is asked of it then raises PeerError.
    """

    def __init__(self, load: Callable[[], Api], name: str, pool: Region) -> None:
        self.ended = "not started"  #: why it cannot be used; empty while it can
        self.blamed = ""  #: the peer whose READ ended it, if one did
        self.metadata = b""  #: how a peer connects to it
        self.seals = Seals()
        self._load = load
        self._name = name
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._thread: AgentThread | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._attended = 0

    async def start(self) -> None:
        """Takes half a second. Raises Unusable."""
        started: asyncio.Future[bytes] = self._loop.create_future()

        def tell(metadata: bytes) -> None:
            self._loop.call_soon_threadsafe(_resolve, started, metadata)

        def over(reason: str) -> None:
            self._loop.call_soon_threadsafe(self._end, reason)

        self._thread = AgentThread(self._open, tell, over)
        await asyncio.wait((started, self._over), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            raise Unusable(self.ended)
        self.metadata, self.ended = started.result(), ""

    async def close(self) -> None:
        """Break off what is under way; returns when nothing is registered any more."""
        if self._thread is None:
            return
        self._give_up("this worker is leaving")
        await asyncio.shield(self._over)

    def attend(self) -> None:
        """Peers may connect from here on, until ``ignore``; calls are counted."""
        self._attended += 1
        if self._attended == 1 and self._thread is not None:
            self._thread.attending = True
            self._thread.put(Call(_ignore, _ignore))  # wakes it

    def ignore(self) -> None:
        self._attended -= 1
        if not self._attended and self._thread is not None:
            self._thread.attending = False

    async def connect(self, peer: str, metadata: bytes, pool: Region) -> None:
        """Raises PeerError."""
        await self._call(lambda books: books.connect(peer, metadata, pool))

    def forget(self, peer: str) -> None:
        """Disconnect, some time soon. No READ from it is under way."""
        if self._thread is not None and not self.ended:
            self._thread.put(Call(lambda books: books.forget(peer), _ignore))

    async def read(self, peer: str, here: Sequence[int], there: Sequence[int]) -> None:
        """READ these blocks of its pool into those of ours, by number. Raises PeerError.

        When it has returned or raised, no byte of it lands any more: even a cancelled one ends
        first.
        """
        await self._read(peer, lambda books: books.read_blocks(peer, here, there))

    async def read_seal(self, peer: str, address: int) -> bytes:
        """What is there now. Raises PeerError, or WorkerFull."""
        place = self.seals.take()
        try:
            await self._read(peer, lambda books: books.read_bytes(peer, place, address, SEAL_BYTES))
            return self.seals.read(place)
        finally:
            self.seals.give_back(place)

    def _open(self) -> Books:
        """On the thread."""
        api = self._load()
        try:
            books = Books(api, api.make_agent(self._name))
            pool, seals = self._pool, self.seals
            total = pool.layers * pool.num_blocks * pool.block_bytes
            books.register(pool.address, total, pool.device)
            books.register(seals.address, seals.nbytes, None)
            books.prepare(OWN, pool)
        except api.errors as error:
            raise Unusable(f"no NIXL agent: {error}") from error
        return books

    def _end(self, reason: str) -> None:
        """Called once, when the thread is through."""
        self.ended = reason or self.ended
        if self._thread is not None:
            self.blamed = self.blamed or self._thread.blamed
            self._thread.drain()
        self._over.set_result(None)

    def _give_up(self, why: str) -> None:
        if self._thread is not None and not self._over.done():
            self.ended = self.ended or why
            self._thread.end()

    def _require_usable(self) -> AgentThread:
        if self._thread is None or self.ended:
            raise PeerError(f"the NIXL agent cannot be used: {self.ended}")
        return self._thread

    async def _call(self, work: Callable[[Books], None]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._require_usable().put(Call(work, self._teller(future)))
        await future

    async def _read(self, peer: str, make: Callable[[Books], Handle]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._require_usable().put(Read(peer, make, self._teller(future)))
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await finish(self._ends(peer, future))
            raise

    async def _ends(self, peer: str, future: asyncio.Future[None]) -> None:
        done, _ = await asyncio.wait({future}, timeout=PATIENCE)
        if not done:
            self.blamed = self.blamed or peer
            self._give_up(f"a READ that nobody wants did not end within {PATIENCE:g} s")
        with suppress(PeerError):
            await future

    def _teller(self, future: asyncio.Future[None]) -> OnEnd:
        def tell(reason: str) -> None:
            self._loop.call_soon_threadsafe(_settle, future, reason)

        return tell


def _ignore(_: object) -> None:
    """For what is asked only to wake the thread, and for what nobody waits to hear."""


def _resolve(future: asyncio.Future[bytes], value: bytes) -> None:
    if not future.done():
        future.set_result(value)


def _settle(future: asyncio.Future[None], reason: str) -> None:
    if future.done():  # whoever asked was cancelled
        return
    if reason:
        future.set_exception(PeerError(reason))
    else:
        future.set_result(None)
