"""Keeps the fleet up to date: one Watch stream per member, for as long as it is a member."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass

import grpc
import structlog
import tenacity

from baton import channels, tasks, wire
from baton.errors import IncompatiblePeer
from baton.identity import Identity
from baton.liveness import Beat, Liveness, PeerSilent
from baton.membership import Membership
from baton.v1 import worker_pb2, worker_pb2_grpc
from gateway.fleet import Health, Report, Worker

log = structlog.get_logger(__name__)

#: Seconds between attempts to reach a worker that does not answer: at most, first and ever.
RECONNECT_FIRST = 0.2
RECONNECT_LONGEST = 1.0


class Unreachable(Exception):
    """A member could not be watched: nothing answered, or what did is not one of ours."""


@dataclass(slots=True)
class Member:
    """An address, and the worker instance last seen there."""

    address: str
    health: Health = Health.CONNECTING
    worker: Worker | None = None
    #: Why it is not healthy; empty when it is.
    reason: str = ""

    def turn(self, health: Health, reason: str = "") -> None:
        """Change health here and on the instance seen last; log it when it is new."""
        if health is not self.health:
            write = log.info if health is Health.HEALTHY else log.warning
            write("worker", address=self.address, health=health.value, reason=reason)
        self.health = health
        self.reason = reason
        if self.worker is not None:
            self.worker.health = health


class Registry:
    """Every member's state.

    ``changed`` is called after each change that placement may use, ``news`` with two reports of
    one instance that follow one another.
    """

    def __init__(
        self,
        membership: Membership,
        identity: Identity,
        beat: Beat,
        changed: Callable[[], None],
        news: Callable[[Report, Report], None],
    ) -> None:
        self._membership = membership
        self._identity = identity
        self._beat = beat
        self._changed = changed
        self._news = news
        self._members: dict[str, Member] = {}
        self._following: dict[str, asyncio.Task[None]] = {}

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    @property
    def workers(self) -> list[Worker]:
        """Workers that may get work; suspects only as a last resort, which placement decides."""
        return [
            member.worker
            for member in self._members.values()
            if member.worker is not None and member.health in (Health.HEALTHY, Health.SUSPECT)
        ]

    async def run(self) -> None:
        """Follow the membership until cancelled; then every stream is closed."""
        async with tasks.group() as group:
            async for addresses in self._membership.watch():
                self._adopt(addresses, group)

    def _adopt(self, addresses: frozenset[str], group: asyncio.TaskGroup) -> None:
        for address in self._members.keys() - addresses:
            self._following.pop(address).cancel()
            self._members.pop(address).turn(Health.OUT, "left the membership")
        for address in sorted(addresses - self._members.keys()):
            member = self._members[address] = Member(address)
            self._following[address] = group.create_task(self._follow(member))
        self._changed()

    async def _follow(self, member: Member) -> None:
        """Watch one member for ever; the back-off starts afresh after every stream that worked."""
        while True:
            retrying = tenacity.AsyncRetrying(
                wait=tenacity.wait_random_exponential(RECONNECT_FIRST, RECONNECT_LONGEST),
                retry=tenacity.retry_if_exception_type(Unreachable),
            )
            await retrying(self._watch, member)

    async def _watch(self, member: Member) -> None:
        """Follow one Watch stream to its end. Raises Unreachable unless it gave a report."""
        worked = False
        try:
            ended = await self._listen(member)
        except IncompatiblePeer as error:
            member.turn(Health.REFUSED, error.message)
        else:
            worked = member.health in (Health.HEALTHY, Health.SUSPECT)
            member.turn(Health.CONNECTING if member.worker is None else Health.OUT, ended)
        self._changed()
        if not worked:
            raise Unreachable(member.reason)

    async def _listen(self, member: Member) -> str:
        """Take in reports until the stream ends; returns why. Raises IncompatiblePeer."""
        liveness = Liveness(self._beat)
        async with channels.connect(member.address) as channel:
            call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(
                worker_pb2.WatchRequest(identity=wire.identity_to_wire(self._identity))
            )
            try:
                async with tasks.group() as beside:
                    beside.create_task(liveness.run(lambda _: self._tick(member, liveness.silent)))
                    await self._read(member, call, liveness)
                    raise PeerSilent("it closed the status stream")
            except PeerSilent as silence:
                return str(silence)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name.lower()}: {error.details()}"
            except IncompatiblePeer:
                raise
            except Exception as error:
                log.exception("status not understood", address=member.address)
                return repr(error)
            finally:
                call.cancel()

    async def _read(
        self,
        member: Member,
        statuses: AsyncIterable[worker_pb2.WorkerStatus],
        liveness: Liveness,
    ) -> None:
        async for status in statuses:
            liveness.heard()
            report = Report.from_wire(status)
            if member.worker is None or member.worker.instance_id != report.identity.instance_id:
                if member.worker is not None:
                    member.worker.health = Health.OUT
                member.worker = Worker(member.address, report)
            else:
                self._news(member.worker.report, report)
                member.worker.reported(report, asyncio.get_running_loop().time())
            member.turn(Health.HEALTHY)
            self._changed()

    def _tick(self, member: Member, silent: int) -> None:
        if silent > 1 and member.health is Health.HEALTHY:
            member.turn(Health.SUSPECT, f"{silent - 1} beat missed")
