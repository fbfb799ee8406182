"""The gateway put together: every part made once, here, and handed to those that need it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from baton import tasks
from baton.identity import Identity, new_instance_id
from baton.membership import Membership
from baton.membership.embedded import EmbeddedMembership
from baton.settings import GatewaySettings
from gateway import sources
from gateway.admission import Admission
from gateway.app import admin_app, public_app
from gateway.endpoints import Generation
from gateway.kv_metrics import KvCounters, KvPairs
from gateway.members import MembershipService, serving
from gateway.metrics import Metrics
from gateway.orchestrator import Orchestrator, RetryPolicy
from gateway.placement import Placement
from gateway.registry import Registry
from gateway.requests import Validator
from gateway.role_controller import RoleController
from gateway.session import Sessions
from gateway.status import Status
from gateway.tokenizer import ModelTokenizer
from gateway.waiting import WaitingRoom


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway without its HTTP servers."""

    public: Starlette
    admin: Starlette
    rpc: str  #: host:port of its gRPC server
    registry: Registry
    metrics: Metrics


@asynccontextmanager
async def running(
    settings: GatewaySettings,
    tokenizer: ModelTokenizer,
    membership: Membership | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Service]:
    """Follow the workers, let them join and serve requests inside the block; end every session
    after it.

    Raises OSError when the gRPC port is taken, MembershipUnavailable.
    """
    identity = Identity(new_instance_id(), compatibility=None)
    metrics = Metrics(CollectorRegistry())
    waiting = WaitingRoom()
    admission = Admission(settings.max_queue_tokens, metrics.queue_tokens)
    placement = Placement(rng or random.Random())
    sessions = Sessions(identity, settings.beat, metrics.stale_tokens)
    membership = membership or sources.membership(settings, identity)
    registry = Registry(
        membership,
        identity,
        settings.beat,
        stall_timeout=settings.stall_timeout,
        controls_roles=settings.auto_roles,
        changed=waiting.changed,
        news=KvCounters(metrics.registry).count,
        stalled=sessions.give_up,
    )
    metrics.registry.register(KvPairs(lambda: registry.roster.workers))
    orchestrator = Orchestrator(
        registry,
        sessions,
        placement,
        waiting,
        admission,
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
        max_body_bytes=settings.max_body_bytes,
        body_timeout=settings.body_timeout,
    )
    embedded = membership if isinstance(membership, EmbeddedMembership) else None
    members = MembershipService(registry, embedded)
    # A gateway that no longer follows its workers serves nobody: a defect there ends the block.
    async with (
        serving(settings.host, settings.rpc_port, members) as rpc,
        tasks.group() as beside,
    ):
        following = [beside.create_task(registry.run(), name="registry")]
        if settings.auto_roles:
            controller = RoleController(
                registry, identity, settings.beat, metrics, settings.role_hold
            )
            following.append(beside.create_task(controller.run(), name="roles"))
        if embedded is not None:
            following.append(beside.create_task(embedded.run(), name="registrations"))
        try:
            yield Service(public, admin_app(status), rpc, registry, metrics)
        finally:
            for task in following:
                task.cancel()
            await sessions.close()
