"""Channels to peer instances: dialled once, shared, and closed when the peer is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from baton.errors import PeerError
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party


@dataclass(slots=True, eq=False)
class _Connection:
    instance_id: str
    channel: grpc.aio.Channel
    generation: int  #: of the certificate that it was made with
    users: int = 0
    lost: bool = False


class Connections:
    """At most one channel per (peer instance, address, purpose), each a connection of its own.

    Peers are known by instance, not by address alone: a restarted worker is a new peer. Once a
    user of any channel to a peer finds it lost, or our certificate was replaced, new users dial
    afresh, and each old channel is closed with its last user.

    A closed channel dials on until its last call object is gone (grpcio 1.85), and the traceback
    of what broke a call would keep it for long: users drop theirs, and the error of gRPC that
    refers to it, before they raise.
    """

    def __init__(self, window: int | None = None, links: Links = PLAIN) -> None:
        """``window``: see ``channels.connect``."""
        self._window = window
        self._links = links
        self._open: dict[tuple[str, str, str], _Connection] = {}

    @asynccontextmanager
    async def to(
        self, instance_id: str, address: str, purpose: str, party: Party = Party.PREFILL
    ) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to ``address``, where ``party`` listens, for the body; a PeerError in it means
        that the peer is lost."""
        key = (instance_id, address, purpose)
        generation = self._links.generation
        connection = self._open.get(key)
        if connection is not None and connection.generation != generation:
            await self._lose(instance_id)
            connection = None
        if connection is None:
            channel = self._links.connect(address, party, shared=False, window=self._window)
            connection = self._open[key] = _Connection(instance_id, channel, generation)
        connection.users += 1
        try:
            yield connection.channel
        except PeerError:
            await self._lose(instance_id)
            raise
        finally:
            connection.users -= 1
            if connection.lost and not connection.users:
                await connection.channel.close(None)

    def connected(self) -> set[str]:
        """The instances that a connection is up to, as far as keepalive knows."""
        return {
            connection.instance_id
            for connection in self._open.values()
            if connection.channel.get_state() is grpc.ChannelConnectivity.READY
        }

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        while self._open:
            _, connection = self._open.popitem()
            await connection.channel.close(None)

    async def _lose(self, instance_id: str) -> None:
        for key, connection in list(self._open.items()):
            if connection.instance_id == instance_id:
                del self._open[key]
                connection.lost = True
                if not connection.users:
                    await connection.channel.close(None)
