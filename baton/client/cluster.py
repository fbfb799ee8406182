"""A gateway's workers: how they are, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from baton.client import http
from baton.errors import InvalidRequest

#: Seconds that a gateway gets to answer.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker as a gateway sees it; what it has not said yet is empty."""

    address: str
    state: str  #: "healthy", "suspect", "connecting", ...
    reason: str  #: why it is not healthy
    instance_id: str = ""
    roles: tuple[str, ...] = ()  #: "prefill", "decode"
    model: str = ""
    draining: bool = False
    #: queued_tokens, running, waiting, blocks_free, ...
    load: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Drained:
    """A worker that takes nothing more."""

    handed_back: int  #: sequences that go on elsewhere


@dataclass(frozen=True, slots=True)
class RoleSet:
    """What a worker does from now on."""

    roles: tuple[str, ...]
    handed_back: int  #: sequences that go on elsewhere
    finishing: int  #: prompts that it still computes


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate that names the role admin, its key, and whose certificates are accepted; PEM
    files."""

    cert: Path
    key: Path
    ca: Path


class Cluster:
    """Asks a gateway's admin port for its workers, and tells workers what to do by gRPC.

    The latter needs gRPC: ``pip install 'baton-client[grpc]'``, or the whole of Baton.
    """

    def __init__(self, admin: str | None, tls: Tls | None = None) -> None:
        """``admin``: URL of a gateway's --admin-port. Raises InvalidRequest without one."""
        if admin is None:
            raise InvalidRequest(
                "the client was given no admin URL: Client(..., admin='http://HOST:8001')"
            )
        self._admin = admin.rstrip("/")
        self._tls = tls

    def workers(self) -> list[Worker]:
        """Raises GatewayLost."""
        try:
            response = httpx.get(f"{self._admin}/cluster", timeout=_PATIENCE)
        except httpx.TransportError as error:
            raise http.lost(self._admin, error) from error
        if response.status_code != 200:
            raise http.refused(self._admin, response)
        return [_worker(said) for said in response.json()["workers"]]

    def set_role(self, worker: str, role: str, *, grace: float | None = None) -> RoleSet:
        """Have the worker at an address prefill, decode or do "both". ``grace``: seconds that
        sequences get to finish; the worker's own if None. Raises PeerError, InvalidRequest."""
        with _needing_grpc():
            from baton.client import rpc
        with rpc.calling(worker, self._tls) as channel:
            return rpc.set_role(channel, role, grace)

    def drain(self, worker: str, *, grace: float) -> Drained:
        """Have the worker at an address hand back its work and leave; its process stays. Raises
        PeerError."""
        with _needing_grpc():
            from baton.client import rpc
        with rpc.calling(worker, self._tls) as channel:
            return rpc.drain(channel, grace)


class AsyncCluster:
    """The same in a thread: such calls are few."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def workers(self) -> list[Worker]:
        """As ``Cluster.workers``."""
        return await asyncio.to_thread(self._cluster.workers)

    async def set_role(self, worker: str, role: str, *, grace: float | None = None) -> RoleSet:
        """As ``Cluster.set_role``."""
        return await asyncio.to_thread(self._cluster.set_role, worker, role, grace=grace)

    async def drain(self, worker: str, *, grace: float) -> Drained:
        """As ``Cluster.drain``."""
        return await asyncio.to_thread(self._cluster.drain, worker, grace=grace)


@contextmanager
def _needing_grpc() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        needed = "telling workers what to do needs gRPC: pip install 'baton-client[grpc]'"
        raise ImportError(needed) from error


def _worker(said: Mapping[str, Any]) -> Worker:
    return Worker(
        address=said["address"],
        state=said["state"],
        reason=said["reason"],
        instance_id=said.get("instance_id", ""),
        roles=tuple(said.get("roles", ())),
        model=said.get("model", ""),
        draining=said.get("draining", False),
        load=said.get("load", {}),
    )
