"""``--auto-roles``: tells workers to change their role when the policy says so.

Several gateways may run it. Only one decides: each worker names the gateway with the lowest
instance id of those that watch it for this, refuses any other, and nobody decides who is not named
by all. A gateway that comes or goes thus never leaves two that each take away a worker.
"""

from __future__ import annotations

import asyncio

import grpc
import structlog

from baton import channels, wire
from baton.identity import Family, Identity
from baton.liveness import Beat
from baton.v1 import worker_pb2, worker_pb2_grpc
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.role_policy import Balance, Move

log = structlog.get_logger(__name__)

#: Seconds that a worker gets to change, beyond any grace that is set sensibly.
_PATIENCE = 30.0


class RoleController:
    """Looks at every pool once a beat."""

    def __init__(
        self, registry: Registry, identity: Identity, beat: Beat, metrics: Metrics, hold: float
    ) -> None:
        self._registry = registry
        self._identity = identity
        self._beat = beat
        self._metrics = metrics
        self._hold = hold
        self._balances: dict[tuple[str, Family], Balance] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._beat.interval)
            for move in self.moves(asyncio.get_running_loop().time()):
                await self._make(move)

    def moves(self, now: float) -> list[Move]:
        """What it is time for at ``now``, at most one for each pool."""
        pools, mine = self._registry.roster.all_pools, self._identity.instance_id
        self._balances = {
            key: self._balances.get(key) or Balance(mine, self._hold) for key in pools
        }
        decided = (self._balances[key].decide(pool, now) for key, pool in pools.items())
        return [move for move in decided if move is not None]

    async def _make(self, move: Move) -> None:
        request = worker_pb2.SetRolesRequest(
            roles=wire.roles_to_wire([move.role]), controller=self._identity.instance_id
        )
        log.info("changing a role", worker=move.worker.address, role=move.role.value, why=move.why)
        async with channels.connect(move.worker.address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            try:
                await stub.SetRoles(request, timeout=_PATIENCE)
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name.lower()}: {error.details()}"
                log.warning("role not changed", worker=move.worker.address, reason=why)
                return
        self._metrics.role_changes.labels(role=move.role.value).inc()
