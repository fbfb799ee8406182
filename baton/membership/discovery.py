"""Membership by asking a gateway: whom it knows, wherever it has them from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import structlog

from baton import wire
from baton.backoff import Backoff
from baton.errors import IncompatiblePeer
from baton.identity import Identity
from baton.membership import Entry
from baton.tls.links import Links
from baton.tls.names import Party
from baton.v1 import membership_pb2, membership_pb2_grpc

log = structlog.get_logger(__name__)

_RETRY_FIRST, _RETRY_LONGEST = 0.2, 2.0  # seconds


class Discovery:
    """The members of the first gateway of several that answers; while none does, the last known."""

    def __init__(self, gateways: Sequence[str], identity: Identity, links: Links) -> None:
        """``gateways``: host:port of their gRPC servers. ``identity``: who asks."""
        self._gateways = gateways
        self._identity = identity
        self._links = links

    async def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Never ends; see ``Membership.watch``."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_LONGEST)
        while True:
            for gateway in self._gateways:
                try:
                    async for entries in self._discover(gateway):
                        backoff.reset()
                        yield entries
                except (grpc.aio.AioRpcError, IncompatiblePeer) as error:
                    reason = error.details() if isinstance(error, grpc.RpcError) else str(error)
                    log.warning("gateway does not tell its members", at=gateway, reason=reason)
            await asyncio.sleep(backoff.pause())

    async def _discover(self, gateway: str) -> AsyncIterator[frozenset[Entry]]:
        request = membership_pb2.DiscoverRequest(identity=wire.identity_to_wire(self._identity))
        async with self._links.connect(gateway, Party.GATEWAY, shared=False) as channel:
            call = membership_pb2_grpc.MembershipServiceStub(channel).Discover(request)
            try:
                async for reply in call:
                    yield frozenset(Entry.from_wire(entry) for entry in reply.entries)
            finally:
                call.cancel()
