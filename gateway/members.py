"""MembershipService: how workers come and go, and who is there, over the gateway's gRPC port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton import channels, wire
from baton.errors import BatonError, IncompatiblePeer, InvalidRequest
from baton.membership import Entry
from baton.membership.embedded import EmbeddedMembership
from baton.membership.source import split_address
from baton.v1 import membership_pb2, membership_pb2_grpc
from gateway.registry import Member, Registry

JoinContext = grpc.aio.ServicerContext[membership_pb2.JoinRequest, membership_pb2.JoinReply]
LeaveContext = grpc.aio.ServicerContext[membership_pb2.LeaveRequest, membership_pb2.LeaveReply]
ListContext = grpc.aio.ServicerContext[membership_pb2.ListRequest, membership_pb2.ListReply]
DiscoverContext = grpc.aio.ServicerContext[
    membership_pb2.DiscoverRequest, membership_pb2.DiscoverReply
]


class MembershipService(membership_pb2_grpc.MembershipServiceServicer):
    """Tells of the registry's members; takes registrations where the membership is embedded."""

    def __init__(self, registry: Registry, embedded: EmbeddedMembership | None) -> None:
        self._registry = registry
        self._embedded = embedded

    async def Join(  # noqa: N802 - named by the contract
        self, request: membership_pb2.JoinRequest, context: JoinContext
    ) -> membership_pb2.JoinReply:
        try:
            embedded = self._require_embedded()
            embedded.join(_checked(request.entry))
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        return membership_pb2.JoinReply(renew_ms=round(1000 * embedded.renew_after))

    async def Leave(  # noqa: N802
        self, request: membership_pb2.LeaveRequest, context: LeaveContext
    ) -> membership_pb2.LeaveReply:
        try:
            self._require_embedded().leave(request.address, request.instance_id)
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


def _checked(message: membership_pb2.Entry) -> Entry:
    """Raises InvalidRequest for an entry that could not be followed, and as Entry.from_wire."""
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
async def serving(host: str, port: int, service: MembershipService) -> AsyncIterator[str]:
    """Serve it, and standard gRPC health, inside the block; yields the address.

    Raises OSError when it is taken.
    """
    server = channels.server()
    membership_pb2_grpc.add_MembershipServiceServicer_to_server(service, server)
    answering = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(answering, server)
    await answering.set("", health_pb2.HealthCheckResponse.SERVING)
    address = f"{host}:{channels.bind(server, host, port)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)
