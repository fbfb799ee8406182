"""Keeps the fleet up to date: one Watch stream per member, for as long as it is a member."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass

import grpc
import structlog

from baton import tasks, wire
from baton.backoff import Backoff
from baton.errors import IncompatiblePeer
from baton.identity import Identity
from baton.latest import Latest
from baton.liveness import Beat, Liveness, PeerSilent
from baton.membership import Entry, Membership
from baton.tls.links import Links
from baton.tls.names import Party
from baton.v1 import worker_pb2, worker_pb2_grpc
from gateway.caches import CacheGap, CacheIndex
from gateway.fleet import Health, Report, Worker
from gateway.progress import Progress
from gateway.roster import Roster

log = structlog.get_logger(__name__)

#: Seconds between attempts to reach a member that does not answer, first and at most. They start
#: short, as most members that are lost are restarting, and grow, as an address in a list may be
#: gone for good: who comes back is noticed after about as long again as it was away.
RECONNECT_FIRST, RECONNECT_LONGEST = 0.2, 30.0
#: At most, of one that vouches for itself by a registration: if it is gone, that ends soon.
RECONNECT_REGISTERED = 1.0
#: Likewise of one that answers, but has no status yet: it is loading its model.
RECONNECT_LOADING = 0.5

#: Cached blocks that are known of one worker, whatever it says of its pool: about 100 bytes each.
MOST_BLOCKS = 2**22


@dataclass(slots=True)
class Ended:
    """What a status stream has brought by its end."""

    reason: str = ""
    worked: bool = False  #: a report
    broken: bool = False  #: the connection
    loading: bool = False  #: only the answer that there are no reports yet


@dataclass(slots=True)
class Member:
    """An address, and the worker instance last seen there."""

    entry: Entry
    health: Health = Health.CONNECTING
    worker: Worker | None = None
    #: Why it is not healthy; empty when it is.
    reason: str = ""
    #: What it last said of itself.
    status: worker_pb2.WorkerStatus | None = None

    @property
    def address(self) -> str:
        return self.entry.address

    def turn(self, health: Health, reason: str = "") -> bool:
        """Change health here and on the instance seen last; log it, and return True, when it is
        new."""
        new = health is not self.health
        if new:
            write = log.info if health is Health.HEALTHY else log.warning
            write("worker", address=self.address, health=health.value, reason=reason)
        self.health = health
        self.reason = reason
        if self.worker is not None:
            self.worker.health = health
        return new

    def is_same(self, entry: Entry) -> bool:
        """Whether ``entry`` may be the instance that is followed here already."""
        known = {self.entry.instance_id, self.worker.instance_id if self.worker else ""}
        return entry.instance_id in known or not entry.instance_id


class Registry:
    """Every member's state.

    ``caches`` gets what workers tell of their caches; without it they are not asked.
    ``changed`` is called after each change that placement may use, ``lost`` with a worker that is
    out and had not said that it drains, ``stalled`` with one whose engine has work and takes no
    step, and why. With ``controls_roles`` workers hear that it would change their roles.
    """

    def __init__(
        self,
        membership: Membership,
        identity: Identity,
        beat: Beat,
        links: Links,
        *,
        stall_timeout: float,
        caches: CacheIndex | None = None,
        controls_roles: bool = False,
        changed: Callable[[], None] = lambda: None,
        lost: Callable[[Worker], None] = lambda worker: None,
        stalled: Callable[[Worker, str], None] = lambda worker, why: None,
    ) -> None:
        self._membership = membership
        self._identity = identity
        self._beat = beat
        self._links = links
        self._stall_timeout = stall_timeout
        self._caches = caches
        self._controls_roles = controls_roles
        self._changed = changed
        self._lost = lost
        self._stalled = stalled
        self._members: dict[str, Member] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._roster: Roster | None = None
        self._resorted = asyncio.Event()  # of the roster that there is
        #: The members as the membership has them.
        self.entries: Latest[frozenset[Entry]] = Latest(frozenset())

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    @property
    def roster(self) -> Roster:
        """Workers that may get work; suspects only as a last resort, which placement decides."""
        if self._roster is None:
            self._roster = Roster(
                member.worker
                for member in self._members.values()
                if member.worker is not None and member.health in (Health.HEALTHY, Health.SUSPECT)
            )
        return self._roster

    async def another_roster(self) -> None:
        """Returns once workers have come, gone or stand differently."""
        await self._resorted.wait()

    async def run(self) -> None:
        """Follow the membership until cancelled; then every stream is closed."""
        async with tasks.group() as group:
            async for entries in self._membership.watch():
                self._adopt(entries, group)

    def _adopt(self, entries: frozenset[Entry], group: asyncio.TaskGroup) -> None:
        named = {entry.address: entry for entry in entries}
        for address in self._members.keys() - named.keys():
            self._drop(address, "left the membership")
        for address, entry in sorted(named.items()):
            member = self._members.get(address)
            if member is not None and member.is_same(entry):
                member.entry = entry
                continue
            if member is not None:
                self._drop(address, "another instance has taken its place")
            member = self._members[address] = Member(entry)
            self._following[address] = group.create_task(self._follow(member))
        self.entries.set(entries)
        self._update()

    def _drop(self, address: str, why: str) -> None:
        self._following.pop(address).cancel()
        self._stand(self._members.pop(address), Health.OUT, why)

    async def _follow(self, member: Member) -> None:
        """Watch one member for ever; the back-off starts afresh after every stream that worked."""
        registered = bool(member.entry.instance_id)
        backoff = Backoff(
            RECONNECT_FIRST, RECONNECT_REGISTERED if registered else RECONNECT_LONGEST
        )
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            ended = await self._watch(member)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # Before Python 3.13 a task group forgets a cancellation that meets a failure.
                raise asyncio.CancelledError
            if ended.worked:
                backoff.reset()
            if member.health is Health.SUSPECT and loop.time() - began > RECONNECT_FIRST:
                continue
            pause = backoff.pause()
            await asyncio.sleep(min(pause, RECONNECT_LOADING) if ended.loading else pause)

    async def _watch(self, member: Member) -> Ended:
        """Follow one Watch stream to its end."""
        ended = Ended()
        try:
            ended.reason = await self._listen(member, ended)
        except IncompatiblePeer as error:
            self._stand(member, Health.REFUSED, error.message)
        except CacheGap as gap:
            log.warning("watching anew", address=member.address, reason=str(gap))
        else:
            # Who only lost a connection is found well at once; until then replays may still go
            # there, where their KV is.
            broke = ended.broken and ended.worked and member.health is Health.HEALTHY
            out = Health.SUSPECT if broke else Health.OUT
            self._stand(member, Health.CONNECTING if member.worker is None else out, ended.reason)
        self._update()
        return ended

    async def _listen(self, member: Member, ended: Ended) -> str:
        """Take in reports until the stream ends; returns why. Raises IncompatiblePeer."""
        liveness = Liveness(self._beat)
        async with self._links.connect(member.address, Party.WORKER) as channel:
            call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(
                worker_pb2.WatchRequest(
                    identity=wire.identity_to_wire(self._identity),
                    cache_changes=self._caches is not None,
                    controls_roles=self._controls_roles,
                )
            )
            try:
                async with tasks.group() as beside:
                    beside.create_task(liveness.run(lambda _: self._tick(member, liveness.silent)))
                    await self._read(member, call, liveness, ended)
                    raise PeerSilent("it closed the status stream")
            except PeerSilent as silence:
                return str(silence)
            except grpc.aio.AioRpcError as error:
                ended.broken = error.code() is grpc.StatusCode.UNAVAILABLE
                ended.loading = error.code() is grpc.StatusCode.UNIMPLEMENTED
                return f"{error.code().name.lower()}: {error.details()}"
            except (IncompatiblePeer, CacheGap):
                raise
            except Exception as error:
                log.exception("status not understood", address=member.address)
                return repr(error)
            finally:
                call.cancel()
                if self._caches is not None and member.worker is not None:
                    self._caches.forget(member.worker)  # the next stream tells all again

    async def _read(
        self,
        member: Member,
        statuses: AsyncIterable[worker_pb2.WorkerStatus],
        liveness: Liveness,
        ended: Ended,
    ) -> None:
        progress = Progress(self._stall_timeout)
        async for status in statuses:
            liveness.heard()
            report = Report.from_wire(status)
            ended.worked = True
            member.status = status
            if member.worker is None or member.worker.instance_id != report.identity.instance_id:
                self._replace(member, report)
            else:
                self._take_in(member.worker, report)
            self._account(member.worker, status)
            self._judge(member, report, progress)
            self._changed()

    def _replace(self, member: Member, report: Report) -> None:
        if member.worker is not None:
            member.worker.health = Health.OUT
            if self._caches is not None:
                self._caches.forget(member.worker)
        member.worker = Worker(member.address, report)
        self._resort()

    def _account(self, worker: Worker | None, status: worker_pb2.WorkerStatus) -> None:
        """Take in what it tells of its cache. Raises CacheGap; IncompatiblePeer for more than its
        pool can hold, which the next stream may put right."""
        if self._caches is None or worker is None or not status.HasField("cache"):
            return
        self._caches.apply(worker, status.cache)
        told, most = self._caches.blocks(worker), min(2 * worker.all_blocks, MOST_BLOCKS)
        if told > most:
            raise IncompatiblePeer(f"it tells of {told} cached blocks of {worker.all_blocks}")

    def _take_in(self, worker: Worker, report: Report) -> None:
        before = worker.report
        worker.reported(report, asyncio.get_running_loop().time())
        if before.standing != report.standing:
            self._resort()

    def _judge(self, member: Member, report: Report, progress: Progress) -> None:
        """Who reports is healthy, unless its engine fails or hangs."""
        if progress.stalled(report.load, asyncio.get_running_loop().time()):
            why = f"its engine has work and took no step for {self._stall_timeout:g} s"
            if self._turn(member, Health.OUT, why) and member.worker is not None:
                self._stalled(member.worker, why)
        elif report.failing:
            self._turn(member, Health.OUT, "its engine's steps keep failing")
        else:
            self._turn(member, Health.HEALTHY)

    def _tick(self, member: Member, silent: float) -> None:
        if silent >= 2 and member.health is Health.HEALTHY:
            self._turn(member, Health.SUSPECT, "a beat missed")

    def _turn(self, member: Member, health: Health, reason: str = "") -> bool:
        new = self._stand(member, health, reason)
        if new:
            self._resort()
        return new

    def _stand(self, member: Member, health: Health, reason: str) -> bool:
        """As ``Member.turn``; who served until now and did not drain is lost."""
        served = member.health in (Health.HEALTHY, Health.SUSPECT)
        new = member.turn(health, reason)
        worker = member.worker
        if served and health is Health.OUT and worker is not None and not worker.report.draining:
            self._lost(worker)
        return new

    def _update(self) -> None:
        """Somebody came, went or stands differently."""
        self._resort()
        self._changed()

    def _resort(self) -> None:
        self._roster = None
        self._resorted.set()
        self._resorted = asyncio.Event()
