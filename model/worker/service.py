"""WorkerService: who this worker is, how loaded, whether its books balance, and its leaving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc

from baton import wire
from baton.errors import BatonError
from baton.v1 import worker_pb2, worker_pb2_grpc
from model.engine.engine import Load
from model.worker.cache_watch import CacheWatch
from model.worker.roles import Roles
from model.worker.runtime import Profile, Runtime

#: Seconds between looks at the load: how late a change is reported, and how much is coalesced.
LOOK = 0.05

#: Status streams at once, of gateways, relays and operators: each looks as often, on the loop that
#: serves requests.
MOST_WATCHERS = 256

#: Lets running sequences finish for so many seconds, hands back the rest; returns how many.
Drain = Callable[[float], Awaitable[int]]

WatchContext = grpc.aio.ServicerContext[worker_pb2.WatchRequest, worker_pb2.WorkerStatus]
DrainContext = grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainReply]
RolesContext = grpc.aio.ServicerContext[worker_pb2.SetRolesRequest, worker_pb2.SetRolesReply]
CheckContext = grpc.aio.ServicerContext[
    worker_pb2.CheckIntegrityRequest, worker_pb2.IntegrityReport
]


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Answers from the engine's own counts; holds nothing."""

    def __init__(self, runtime: Runtime, profile: Profile, roles: Roles, drain: Drain) -> None:
        self._runtime = runtime
        self._profile = profile
        self._roles = roles
        self._drain = drain
        self._watchers = 0

    async def Watch(  # noqa: N802 - named by the contract
        self, request: worker_pb2.WatchRequest, context: WatchContext
    ) -> AsyncIterator[worker_pb2.WorkerStatus]:
        """The status now, then every heartbeat, and as soon as it differs."""
        try:
            watcher = wire.identity_from_wire(request.identity)
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        if self._watchers >= MOST_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST_WATCHERS} watch it, as many as may"
            )
        cache = CacheWatch(self._runtime.engine) if self._tells_cache(request) else None
        with ExitStack() as watching:
            watching.enter_context(self._watched())
            if request.controls_roles:
                watching.enter_context(self._roles.controller(watcher.instance_id))
            sequence, last, sent_at = 0, None, 0.0
            while not self._runtime.leaving.is_set():
                load = self._runtime.engine.load()
                changes = cache.news() if cache is not None else None
                news, now = (*_news(load), *self._roles.news), time.monotonic()
                # A look early rather than late: a beat that comes late may count as missed.
                due = now - sent_at >= self._runtime.beat.interval - LOOK
                if news != last or changes is not None or due:
                    sequence, last, sent_at = sequence + 1, news, now
                    yield self._status(load, sequence, changes)
                await asyncio.sleep(LOOK)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    async def CheckIntegrity(  # noqa: N802
        self, request: worker_pb2.CheckIntegrityRequest, context: CheckContext
    ) -> worker_pb2.IntegrityReport:
        """O(pool) under the engine's lock: for tests and quiet hours."""
        census = self._runtime.census
        return worker_pb2.IntegrityReport(
            violations=check(self._runtime, idle=request.idle),
            load=_load(self._runtime.engine.load()),
            tasks=census.tasks,
            tasks_at_start=census.tasks_at_start,
            calls=census.calls,
            descriptors=census.descriptors,
            descriptors_at_start=census.descriptors_at_start,
        )

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, context: DrainContext
    ) -> worker_pb2.DrainReply:
        """Returns when every sequence has finished or was handed back."""
        return worker_pb2.DrainReply(handed_back=await self._drain(request.grace_ms / 1000))

    async def SetRoles(  # noqa: N802
        self, request: worker_pb2.SetRolesRequest, context: RolesContext
    ) -> worker_pb2.SetRolesReply:
        """Returns when nothing decodes that may no longer, after the grace at the latest."""
        grace = request.grace_ms / 1000 if request.HasField("grace_ms") else None
        try:
            roles = wire.roles_from_wire(request.roles)
            done = await self._roles.change(roles, grace=grace, controller=request.controller)
        except BatonError as error:
            await context.abort(error.grpc_code, error.message)
        return worker_pb2.SetRolesReply(
            roles=wire.roles_to_wire(self._roles.now),
            handed_back=done.handed_back,
            finishing=done.finishing,
        )

    def _tells_cache(self, request: worker_pb2.WatchRequest) -> bool:
        """Without a prefix cache every sequence has a salt that no other knows."""
        return request.cache_changes and self._runtime.settings.prefix_cache

    def _status(
        self, load: Load, sequence: int, cache: worker_pb2.CacheChanges | None
    ) -> worker_pb2.WorkerStatus:
        runtime, profile, roles = self._runtime, self._profile, self._roles
        return worker_pb2.WorkerStatus(
            identity=wire.identity_to_wire(runtime.identity),
            roles=wire.roles_to_wire(roles.now),
            local_prefill=profile.local_prefill,
            model=profile.served_name,
            max_model_len=runtime.engine.longest,
            load=_load(load),
            transports=roles.transports,
            draining=load.draining,
            vocab_size=runtime.vocab_size,
            sequence=sequence,
            prefill_decisions=profile.prefill_decisions(),
            kv_pairings=profile.kv_pairings(),
            failing=load.failed,
            tls=runtime.links.encrypted,
            refused=[
                worker_pb2.Refusals(reason=reason, count=count)
                for reason, count in runtime.links.refused.items()
            ],
            cache=cache,
            possible_roles=wire.roles_to_wire(roles.possible),
            roles_since_ms=round(roles.since * 1000),
            controller=roles.in_control,
            max_running=runtime.engine.settings.max_running,
        )


def check(runtime: Runtime, *, idle: bool) -> list[str]:
    """One line per violation of the books; ``idle`` demands that nothing is in use at all."""
    violations = runtime.engine.check_integrity(idle)
    return violations + runtime.census.violations() if idle else violations


def _news(load: Load) -> tuple[object, ...]:
    """What matters to placement: not the steps, which change all the time."""
    return (load.queued_tokens, load.running, load.waiting, load.blocks, load.draining, load.failed)


def _load(load: Load) -> worker_pb2.Load:
    return worker_pb2.Load(
        queued_tokens=load.queued_tokens,
        running=load.running,
        waiting=load.waiting,
        blocks_free=load.blocks.free,
        blocks_cached=load.blocks.cached,
        blocks_owned=load.blocks.owned,
        blocks_quarantined=load.blocks.quarantined,
        steps=load.steps,
        last_step_us=round(load.last_step_s * 1e6),
        prefill_us_per_token=load.costs.prefill_token_s * 1e6,
        prefill_room=load.prefill_room,
        cache_hit_tokens=load.totals.cache_hits,
        prompt_tokens=load.totals.prompt,
        generated_tokens=load.totals.generated,
    )
