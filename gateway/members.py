"""MembershipService: how workers come and go, and who is there, over the gateway's gRPC port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton import wire
from baton.errors import BatonError, IncompatiblePeer, InvalidRequest
from baton.identity import Role
from baton.membership import Entry
from baton.membership.embedded import EmbeddedMembership
from baton.membership.source import split_address
from baton.tls.gate import WRONG_ID, WRONG_ROLE
from baton.tls.links import Links
from baton.v1 import membership_pb2, membership_pb2_grpc
from gateway.registry import Member, Registry

JoinContext = grpc.aio.ServicerContext[membership_pb2.JoinRequest, membership_pb2.JoinReply]
LeaveContext = grpc.aio.ServicerContext[membership_pb2.LeaveRequest, membership_pb2.LeaveReply]
ListContext = grpc.aio.ServicerContext[membership_pb2.ListRequest, membership_pb2.ListReply]
DiscoverContext = grpc.aio.ServicerContext[
    membership_pb2.DiscoverRequest, membership_pb2.DiscoverReply
]
Context = JoinContext | LeaveContext

#: Registrations, each of which is followed; and what one takes up.
MOST_MEMBERS, MOST_ENTRY_BYTES = 16_384, 8192


class MembershipService(membership_pb2_grpc.MembershipServiceServicer):
    """Tells of the registry's members; takes registrations where the membership is embedded."""

    def __init__(
        self, registry: Registry, embedded: EmbeddedMembership | None, links: Links
    ) -> None:
        self._registry = registry
        self._embedded = embedded
        self._links = links

    async def Join(  # noqa: N802 - named by the contract
        self, request: membership_pb2.JoinRequest, context: JoinContext
    ) -> membership_pb2.JoinReply:
        try:
            embedded = self._require_embedded()
            entry = _checked(request.entry)
            holder = self._holder(entry.address, entry.roles, context)
            if embedded.holder(entry.address) is None and len(embedded) >= MOST_MEMBERS:
                raise InvalidRequest(f"{MOST_MEMBERS} workers are registered, as many as may")
            embedded.join(entry, holder)
        except NotTheirs as error:
            await self._refuse(error, context)
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        return membership_pb2.JoinReply(renew_ms=round(1000 * embedded.renew_after))

    async def Leave(  # noqa: N802
        self, request: membership_pb2.LeaveRequest, context: LeaveContext
    ) -> membership_pb2.LeaveReply:
        try:
            embedded = self._require_embedded()
            self._holder(request.address, frozenset(), context)
            embedded.leave(request.address, request.instance_id)
        except NotTheirs as error:
            await self._refuse(error, context)
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        return membership_pb2.LeaveReply()

    async def List(  # noqa: N802
        self, request: membership_pb2.ListRequest, context: ListContext
    ) -> membership_pb2.ListReply:
        return membership_pb2.ListReply(workers=map(_listed, self._registry.members))

    async def Discover(  # noqa: N802
        self, request: membership_pb2.DiscoverRequest, context: DiscoverContext
    ) -> AsyncIterator[membership_pb2.DiscoverReply]:
        try:
            wire.identity_from_wire(request.identity)
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        async for entries in self._registry.entries.follow():
            yield membership_pb2.DiscoverReply(entries=[entry.to_wire() for entry in entries])

    def _require_embedded(self) -> EmbeddedMembership:
        if self._embedded is None:
            raise IncompatiblePeer(
                "this gateway takes no registrations: its --membership is not embedded"
            )
        return self._embedded

    def _holder(self, address: str, roles: frozenset[Role], context: Context) -> str:
        """The id in the caller's certificate; empty without TLS.

        Raises NotTheirs unless the certificate names every one of ``roles``, by one id, and nobody
        else's registration stands at that address.
        """
        if self._links.gate is None or self._embedded is None:
            return ""
        names = self._links.gate.names(context)
        ids = sorted({name.id for name in names})
        missing = {role.value for role in roles} - {name.party.value for name in names}
        if missing:
            raise NotTheirs(WRONG_ROLE, ids, f"does not name {' and '.join(sorted(missing))}")
        if len(ids) != 1:
            raise NotTheirs(WRONG_ID, ids, "names several ids")
        holder = self._embedded.holder(address)
        if holder not in (None, ids[0]):
            raise NotTheirs(WRONG_ID, ids, f"is not that of {holder!r}, registered at {address}")
        return ids[0]

    async def _refuse(self, error: NotTheirs, context: Context) -> NoReturn:
        if self._links.gate is not None:
            self._links.gate.refusals.add(error.why, str(error), peer=context.peer())
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))


class NotTheirs(Exception):
    """A certificate does not allow its holder to come or go as it asks."""

    def __init__(self, why: str, ids: Sequence[str], message: str) -> None:
        """``why``: as it is counted."""
        super().__init__(f"the certificate of {', '.join(map(repr, ids))} {message}")
        self.why = why


def _checked(message: membership_pb2.Entry) -> Entry:
    """Raises InvalidRequest for an entry that could not be followed, and as Entry.from_wire."""
    if (size := message.ByteSize()) > MOST_ENTRY_BYTES:
        raise InvalidRequest(f"the entry has {size} bytes, but {MOST_ENTRY_BYTES} are allowed")
    entry = Entry.from_wire(message)
    try:
        split_address(entry.address)
    except ValueError as error:
        raise InvalidRequest(f"entry.address: {error}") from None
    if not entry.instance_id:
        raise InvalidRequest("entry.identity.instance_id: who registers says who it is")
    return entry


def _listed(member: Member) -> membership_pb2.ListedWorker:
    return membership_pb2.ListedWorker(
        entry=member.entry.to_wire(),
        health=member.health.value,
        reason=member.reason,
        status=member.status,
    )


@asynccontextmanager
async def serving(
    host: str, port: int, service: MembershipService, links: Links
) -> AsyncIterator[str]:
    """Serve it, and standard gRPC health, inside the block; yields the address.

    Raises OSError when it is taken.
    """
    server = links.server()
    membership_pb2_grpc.add_MembershipServiceServicer_to_server(service, server)
    answering = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(answering, server)
    await answering.set("", health_pb2.HealthCheckResponse.SERVING)
    address = f"{host}:{links.bind(server, host, port)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)
