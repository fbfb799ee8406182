"""Channels to peer instances: dialled once, shared, and closed when the peer is lost or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from baton.tls.links import PLAIN, Links
from baton.tls.names import Party

#: Seconds between looks for channels that lead nowhere any more.
_LOOK_S = 10.0


class Connection:
    """One channel to a peer, for as long as somebody uses it and it is not lost."""

    def __init__(self, peer: str, channel: grpc.aio.Channel, generation: int) -> None:
        self.peer = peer
        self.channel = channel
        self.generation = generation  #: of the certificate that it was made with
        self.users = 0
        self.lost = False  #: whoever is meant does not answer over it: for new users no more

    def ended(self, status: grpc.StatusCode) -> None:
        """A call over it ended with ``status``. Whatever else goes wrong was said by the peer, so
        its connection is well; UNAVAILABLE is what gRPC says of one that is broken."""
        self.lost = self.lost or status is grpc.StatusCode.UNAVAILABLE

    @property
    def up(self) -> bool:
        """It is connected, as far as keepalive knows."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY


class Connections:
    """At most one channel per (peer, address, purpose), each a connection of its own.

    Peers are known by instance, not by address alone: a restarted worker is a new peer. Once a
    user of any channel to a peer finds it lost, or our certificate was replaced, new users dial
    afresh, and each old channel is closed with its last user. Channels that nobody uses and whose
    connection is gone are closed when somebody dials or, now and then, uses another.

    A closed channel dials on until its last call object is gone (grpcio 1.85), and the traceback
    of what broke a call would keep it for long: users drop theirs, and the error of gRPC that
    refers to it, before they raise.
    """

    def __init__(
        self, window: int | None = None, links: Links = PLAIN, *, look_s: float = _LOOK_S
    ) -> None:
        """``window``: see ``channels.connect``."""
        self._window = window
        self._links = links
        self._look_s = look_s
        self._looked = 0.0  # loop time
        self._open: dict[tuple[str, str, str], Connection] = {}

    @asynccontextmanager
    async def to(
        self, peer: str, address: str, purpose: str, party: Party = Party.PREFILL
    ) -> AsyncIterator[Connection]:
        """A connection to ``address``, where ``party`` listens, for the body, which says when it
        finds it lost."""
        await self._close_gone()
        key, generation = (peer, address, purpose), self._links.generation
        connection = self._open.get(key)
        if connection is not None and connection.generation != generation:
            await self._drop(lambda each: each.peer == peer and each.generation != generation)
            connection = None
        if connection is None:
            channel = self._links.connect(address, party, shared=False, window=self._window)
            connection = self._open[key] = Connection(peer, channel, generation)
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if connection.lost:
                if self._open.get(key) is connection:  # else others have been dialled since
                    await self._drop(lambda each: each.peer == peer)
                await self._close_unused(connection)

    def connected(self) -> set[str]:
        """The peers that a connection is up to."""
        return {connection.peer for connection in self._open.values() if connection.up}

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        while self._open:
            _, connection = self._open.popitem()
            await connection.channel.close(None)

    async def _close_gone(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._looked >= self._look_s:
            self._looked = now
            await self._drop(lambda each: not each.users and not each.up)

    async def _drop(self, which: Callable[[Connection], bool]) -> None:
        """Let nobody use these any more."""
        for key, connection in list(self._open.items()):
            if which(connection):
                del self._open[key]
                connection.lost = True
                await self._close_unused(connection)

    async def _close_unused(self, connection: Connection) -> None:
        if not connection.users:
            await connection.channel.close(None)
