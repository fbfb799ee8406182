"""What workers are told, by gRPC. All else of the client does without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from baton.client.cluster import Drained, RoleSet, Tls
from baton.errors import BatonError, InvalidRequest, PeerError
from baton.identity import ROLES
from baton.tls.files import Files
from baton.tls.links import Links
from baton.tls.names import Party
from baton.v1 import worker_pb2, worker_pb2_grpc

_PATIENCE = 5.0  # seconds that a process gets to answer

_TO_WIRE = {"prefill": worker_pb2.ROLE_PREFILL, "decode": worker_pb2.ROLE_DECODE}
_NAMES = {role: name for name, role in _TO_WIRE.items()}


@contextmanager
def calling(address: str, tls: Tls | None) -> Iterator[grpc.Channel]:
    """A channel to the worker there, whose refusals are errors of the table. Raises
    BadCertificate, OSError."""
    files = None if tls is None else Files(tls.cert, tls.key, tls.ca, Party.ADMIN)
    with Links(files).blocking(address, Party.WORKER) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise _failure(address, error) from None


def drain(channel: grpc.Channel, grace: float) -> Drained:
    """Returns when its sequences have finished or were handed back. Raises grpc.RpcError."""
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    request = worker_pb2.DrainRequest(grace_ms=round(1000 * grace))
    reply = stub.Drain(request, timeout=grace + 2 * _PATIENCE)
    return Drained(handed_back=reply.handed_back)


def set_role(channel: grpc.Channel, role: str, grace: float | None) -> RoleSet:
    """Returns when nothing decodes there that may no longer. Raises InvalidRequest for what is no
    role, grpc.RpcError."""
    if role not in ROLES:
        raise InvalidRequest(f"role is {role!r}, but must be {', '.join(ROLES)}", param="role")
    request = worker_pb2.SetRolesRequest(
        roles=sorted(_TO_WIRE[each.value] for each in ROLES[role]),
        grace_ms=None if grace is None else round(1000 * grace),
    )
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    reply = stub.SetRoles(request, timeout=(grace or 0.0) + 2 * _PATIENCE)
    return RoleSet(
        roles=tuple(_NAMES.get(each, "?") for each in reply.roles),
        handed_back=reply.handed_back,
        finishing=reply.finishing,
    )


def _failure(address: str, error: grpc.RpcError) -> BatonError:
    """Why a worker did not do as it was told."""
    assert isinstance(error, grpc.Call)
    why = f"{address}: {error.code().name.lower()}: {error.details()}"
    kind = InvalidRequest if error.code() is grpc.StatusCode.INVALID_ARGUMENT else PeerError
    return kind(why)
