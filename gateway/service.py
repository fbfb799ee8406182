"""The gateway put together: every part made once, here, and handed to those that need it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from baton import tasks
from baton.identity import Identity, new_instance_id
from baton.membership import Membership
from baton.membership.static import StaticMembership
from baton.settings import GatewaySettings
from gateway.admission import Admission, QueueLimits, pace
from gateway.app import admin_app, public_app
from gateway.callers import Callers
from gateway.endpoints import Generation
from gateway.keys import Keys, follow, read
from gateway.kv_metrics import KvCounters, KvPairs
from gateway.metrics import Metrics
from gateway.orchestrator import Orchestrator, RetryPolicy
from gateway.placement import Placement
from gateway.presence import Presence
from gateway.registry import Registry
from gateway.requests import Validator
from gateway.session import Sessions
from gateway.status import Status
from gateway.tokenizer import ModelTokenizer
from gateway.waiting import WaitingRoom


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway without its HTTP servers."""

    public: Starlette
    admin: Starlette
    registry: Registry
    metrics: Metrics


@asynccontextmanager
async def running(
    settings: GatewaySettings,
    tokenizer: ModelTokenizer,
    membership: Membership | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Service]:
    """Follow the workers and serve requests inside the block; end every session after it.

    Raises KeyFileError.
    """
    identity = Identity(new_instance_id(), compatibility=None)
    metrics = Metrics(CollectorRegistry())
    clock = asyncio.get_running_loop().time
    path = settings.api_keys
    keys = None if path is None else Keys(read(path), settings.cache_scope, clock)
    waiting = WaitingRoom(clock)
    placement = Placement(rng or random.Random())
    presence = Presence(
        lambda: placement.serves(registry.workers, settings.served_name),
        settings.worker_grace,
        clock,
        waiting.changed,
    )
    registry = Registry(
        membership or StaticMembership([*settings.prefill, *settings.decode]),
        identity,
        settings.beat,
        presence.look,
        KvCounters(metrics.registry).count,
    )
    admission = Admission(
        QueueLimits(tokens=settings.max_queue_tokens, requests=settings.max_queue_requests),
        waiting,
        lambda: pace(registry.workers),
        metrics.queue_tokens,
        clock,
    )
    metrics.registry.register(KvPairs(lambda: registry.workers))
    sessions = Sessions(identity, settings.beat, metrics.stale_tokens)
    orchestrator = Orchestrator(
        registry,
        sessions,
        placement,
        waiting,
        admission,
        presence,
        RetryPolicy(
            initial=settings.retry_initial,
            longest=settings.retry_max,
            budget=settings.retry_budget,
        ),
        metrics,
    )
    validator = Validator(settings.served_name, tokenizer, settings.deadlines)
    generation = Generation(
        validator, tokenizer, registry, orchestrator, metrics, settings.write_timeout
    )
    status = Status(
        settings.served_name, identity, registry, placement, waiting, admission, metrics
    )
    public = public_app(
        generation,
        status,
        Callers(keys, metrics),
        max_body_bytes=settings.max_body_bytes,
        body_timeout=settings.body_timeout,
        cors_origins=settings.cors_origin,
    )
    # A gateway that no longer follows its workers serves nobody: a defect there ends the block.
    async with tasks.group() as beside:
        following = [beside.create_task(registry.run(), name="registry")]
        if keys is not None and path is not None:
            following.append(beside.create_task(follow(path, keys), name="API keys"))
        try:
            yield Service(public, admin_app(status), registry, metrics)
        finally:
            for task in following:
                task.cancel()
            await sessions.close()
