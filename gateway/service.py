"""The gateway put together: every part made once, here, and handed to those that need it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette

from baton import tasks
from baton.identity import Identity, new_instance_id
from baton.membership import Membership
from baton.membership.embedded import EmbeddedMembership
from baton.metrics.process import process_registry
from baton.settings import GatewaySettings
from baton.tls.links import Links
from baton.tracing import tracing
from gateway import sources
from gateway.admission import Admission, QueueLimits, pace
from gateway.app import admin_app, public_app
from gateway.body_limit import Bodies
from gateway.callers import Callers
from gateway.endpoints import Generation
from gateway.fleet_metrics import FleetMetrics, role_label
from gateway.hosts import known_hosts
from gateway.idempotency import Idempotency, KeepLimits
from gateway.keys import Keys, follow, read
from gateway.members import MembershipService, serving
from gateway.metrics import Metrics
from gateway.orchestrator import Orchestrator, RetryPolicy
from gateway.output import Output
from gateway.placement import Placement
from gateway.policies import Weights, policies
from gateway.presence import Presence
from gateway.registry import Registry
from gateway.requests import Validator
from gateway.role_controller import RoleController
from gateway.session import Sessions
from gateway.status import Status
from gateway.telling.account import Accounts
from gateway.telling.broadcast import Broadcast, Figures
from gateway.telling.endpoint import LiveEndpoint
from gateway.telling.feed import Feed
from gateway.telling.paces import Paces
from gateway.telling.workers import Workers
from gateway.tokenizer import ModelTokenizer
from gateway.tokens import Tokens
from gateway.waiting import WaitingRoom


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway without its HTTP servers."""

    public: Starlette
    admin: Starlette
    rpc: str  #: host:port of its gRPC server
    registry: Registry
    metrics: Metrics
    broadcast: Broadcast


@asynccontextmanager
async def running(
    settings: GatewaySettings,
    tokenizer: ModelTokenizer,
    membership: Membership | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Service]:
    """Follow the workers, let them join and serve requests inside the block; end every session
    after it.

    Raises OSError when the gRPC port is taken, MembershipUnavailable, BadCertificate,
    KeyFileError, TracingUnavailable.
    """
    identity = Identity(new_instance_id(), compatibility=None)
    links = Links.of(settings)
    traces = tracing(settings.otlp_endpoint, "gateway", identity.instance_id)
    metrics = Metrics(process_registry("gateway", links))
    clock = asyncio.get_running_loop().time
    path = settings.api_keys
    keys = None if path is None else Keys(read(path), settings.cache_scope, clock)
    waiting = WaitingRoom(clock)
    chosen = policies(settings.placement, Weights(**settings.weights))
    placement = Placement(rng or random.Random(), chosen)
    presence = Presence(
        lambda: placement.serves(registry.roster, settings.served_name),
        settings.worker_grace,
        clock,
        waiting.changed,
    )
    sessions = Sessions(identity, settings.beat, metrics.stale_tokens, links)
    membership = membership or sources.membership(settings, identity, links)
    registry = Registry(
        membership,
        identity,
        settings.beat,
        links,
        stall_timeout=settings.stall_timeout,
        caches=chosen.caches,
        controls_roles=settings.auto_roles,
        changed=presence.look,
        lost=lambda worker: metrics.workers_lost.labels(role_label(worker.report.roles)).inc(),
        stalled=sessions.give_up,
    )
    admission = Admission(
        QueueLimits(tokens=settings.max_queue_tokens, requests=settings.max_queue_requests),
        waiting,
        lambda: pace(registry.roster.workers),
        metrics.queue_tokens,
        clock,
    )
    metrics.registry.register(FleetMetrics(lambda: registry.members))
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
    output = Output(
        tokenizer, settings.grammar_limits, settings.tool_format, settings.reasoning_format
    )
    validator = Validator(settings.served_name, tokenizer, output, settings.deadlines)
    feed, paces = Feed(), Paces()
    broadcast = Broadcast(
        feed,
        Workers(lambda: registry.members, feed, paces, time.monotonic),
        paces,
        Figures(
            instance_id=identity.instance_id,
            model=settings.served_name,
            placement=placement.policy,
            queued_tokens=lambda: admission.tokens,
            waiting=lambda: len(waiting),
        ),
    )
    live = LiveEndpoint(broadcast, settings.write_timeout) if settings.live == "auto" else None
    accounts = Accounts(broadcast, traces, placement.policy)
    generation = Generation(
        validator, tokenizer, registry, orchestrator, metrics, accounts, settings.write_timeout
    )
    idempotency = Idempotency(
        KeepLimits(
            seconds=settings.idempotency_seconds,
            bytes=settings.idempotency_bytes,
            answers=settings.idempotency_answers,
            grace=settings.idempotency_grace,
        ),
        settings.write_timeout,
        metrics,
        clock,
    )
    status = Status(
        settings.served_name, identity, registry, placement, waiting, admission, metrics, links
    )
    callers = Callers(keys, metrics)
    bodies = Bodies(settings.body_limits)
    # Whose requests need a key says so himself: a page of a stranger has none.
    named = settings.allowed_hosts or ([] if callers.anybody else ["*"])
    public = public_app(
        generation,
        Tokens(validator, tokenizer),
        status,
        idempotency,
        callers,
        live,
        known_hosts(settings.host, named, callers.refused),
        bodies,
        cors_origins=settings.cors_origin,
    )
    admin = admin_app(
        generation,
        status,
        idempotency,
        callers,
        live,
        known_hosts(settings.admin_host, settings.allowed_hosts, callers.refused),
        bodies,
    )
    embedded = membership if isinstance(membership, EmbeddedMembership) else None
    members = MembershipService(registry, embedded, links)
    # A gateway that no longer follows its workers serves nobody: a defect there ends the block.
    async with (
        serving(settings.rpc_host, settings.rpc_port, members, links) as rpc,
        tasks.group() as beside,
    ):
        following = [
            beside.create_task(registry.run(), name="registry"),
            beside.create_task(broadcast.run(), name="live feed"),
        ]
        if settings.auto_roles:
            controller = RoleController(
                registry, identity, settings.beat, metrics, settings.role_hold
            )
            following.append(beside.create_task(controller.run(), name="roles"))
        if embedded is not None:
            following.append(beside.create_task(embedded.run(), name="registrations"))
        if keys is not None and path is not None:
            following.append(beside.create_task(follow(path, keys), name="API keys"))
        try:
            yield Service(public, admin, rpc, registry, metrics, broadcast)
        finally:
            for task in following:
                task.cancel()
            await idempotency.close()
            await sessions.close()
            output.close()
            await traces.close()
