"""Which workers there are: one small interface, several sources.

    static      addresses in the settings
    embedded    workers register with the gateway itself
    dns         every address of a name
    etcd        keys that workers keep under a lease
    gateway     whomever a gateway knows, asked over Discover

A membership says where to look, no more: who answers there, what it does and whether it is well
is learnt from the worker itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from baton import wire
from baton.identity import Identity, Role
from baton.v1 import membership_pb2


class MembershipUnavailable(Exception):
    """A package that a source of members needs is not installed; says which."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member: where it is and, where the source knows, who it says it is."""

    address: str  #: host:port
    identity: Identity | None = None
    roles: frozenset[Role] = frozenset()
    model: str = ""

    @property
    def instance_id(self) -> str:
        """Empty when only the address is known."""
        return "" if self.identity is None else self.identity.instance_id

    def to_wire(self) -> membership_pb2.Entry:
        message = membership_pb2.Entry(
            address=self.address, roles=wire.roles_to_wire(self.roles), model=self.model
        )
        if self.identity is not None:
            message.identity.CopyFrom(wire.identity_to_wire(self.identity))
        return message

    @classmethod
    def from_wire(cls, message: membership_pb2.Entry) -> Entry:
        """Raises IncompatiblePeer when its protocol version is not spoken here."""
        known = message.HasField("identity")
        return cls(
            message.address,
            wire.identity_from_wire(message.identity) if known else None,
            wire.roles_from_wire(message.roles),
            message.model,
        )


class Membership(Protocol):
    """A changing set of members, at most one for each address."""

    def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Yield all members now, and again, in full, whenever the set changes.

        Ends when the set can no longer change; the last one stays valid. A source that loses
        its own server keeps to what it last yielded.
        """
        ...
