"""The gateway put together: every part made once, here, and handed to those that need it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette

from baton import tasks
from baton.identity import Identity, new_instance_id
from baton.membership import Membership
from baton.membership.embedded import EmbeddedMembership
from baton.metrics.process import process_registry
from baton.settings import GatewaySettings
from baton.tls.links import Links
from baton.tracing import Tracing, tracing
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
from gateway.placing import Placing
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
    base = _base(settings)
    membership = membership or sources.membership(settings, base.identity, base.links)
    dispatch = _dispatch(base, membership, rng or random.Random())
    surface = _surface(base, dispatch, tokenizer)
    embedded = membership if isinstance(membership, EmbeddedMembership) else None
    members = MembershipService(dispatch.registry, embedded, base.links)
    # A gateway that no longer follows its workers serves nobody: a defect there ends the block.
    async with (
        serving(settings.rpc_host, settings.rpc_port, members, base.links) as rpc,
        tasks.group() as beside,
    ):
        following = [
            beside.create_task(work, name=name)
            for name, work in _beside(base, dispatch, surface, embedded).items()
        ]
        try:
            yield Service(
                surface.public,
                surface.admin,
                rpc,
                dispatch.registry,
                base.metrics,
                surface.broadcast,
            )
        finally:
            for task in following:
                task.cancel()
            await surface.idempotency.close()
            await dispatch.sessions.close()
            surface.output.close()
            await base.traces.close()


def _beside(
    base: _Base, dispatch: _Dispatch, surface: _Surface, embedded: EmbeddedMembership | None
) -> dict[str, Coroutine[Any, Any, None]]:
    """What runs as long as the gateway does, by name."""
    settings = base.settings
    found = {"registry": dispatch.registry.run(), "live feed": surface.broadcast.run()}
    if settings.auto_roles:
        found["roles"] = RoleController(
            dispatch.registry, base.identity, settings.beat, base.metrics, settings.role_hold
        ).run()
    if embedded is not None:
        found["registrations"] = embedded.run()
    if base.keys is not None and settings.api_keys is not None:
        found["API keys"] = follow(settings.api_keys, base.keys)
    return found


@dataclass(frozen=True, slots=True)
class _Base:
    """What the other parts share."""

    settings: GatewaySettings
    identity: Identity
    links: Links
    traces: Tracing
    metrics: Metrics
    keys: Keys | None
    clock: Callable[[], float]


def _base(settings: GatewaySettings) -> _Base:
    identity = Identity(new_instance_id(), compatibility=None)
    links = Links.of(settings)
    traces = tracing(settings.otlp_endpoint, "gateway", identity.instance_id)
    metrics = Metrics(process_registry("gateway", links))
    clock = asyncio.get_running_loop().time
    path = settings.api_keys
    keys = None if path is None else Keys(read(path), settings.cache_scope, clock)
    return _Base(settings, identity, links, traces, metrics, keys, clock)


@dataclass(frozen=True, slots=True)
class _Dispatch:
    """What takes a request to its workers, and again if it has to."""

    registry: Registry
    sessions: Sessions
    placement: Placement
    waiting: WaitingRoom
    admission: Admission
    orchestrator: Orchestrator


def _dispatch(base: _Base, membership: Membership, rng: random.Random) -> _Dispatch:
    settings, metrics = base.settings, base.metrics
    waiting = WaitingRoom(base.clock)
    chosen = policies(settings.placement, Weights(**settings.weights))
    placement = Placement(rng, chosen)
    presence = Presence(
        lambda: placement.serves(registry.roster, settings.served_name),
        settings.worker_grace,
        base.clock,
        waiting.changed,
    )
    sessions = Sessions(base.identity, settings.beat, metrics.stale_tokens, base.links)
    registry = Registry(
        membership,
        base.identity,
        settings.beat,
        base.links,
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
        base.clock,
    )
    metrics.registry.register(FleetMetrics(lambda: registry.members))
    retry = RetryPolicy(
        initial=settings.retry_initial, longest=settings.retry_max, budget=settings.retry_budget
    )
    placing = Placing(registry, sessions, placement, waiting, metrics)
    orchestrator = Orchestrator(registry, placing, waiting, admission, presence, retry, metrics)
    return _Dispatch(registry, sessions, placement, waiting, admission, orchestrator)


@dataclass(frozen=True, slots=True)
class _Surface:
    """What clients and operators see, and what it is made of that has to run or to be closed."""

    public: Starlette
    admin: Starlette
    broadcast: Broadcast
    idempotency: Idempotency
    output: Output


def _surface(base: _Base, dispatch: _Dispatch, tokenizer: ModelTokenizer) -> _Surface:
    settings, metrics, registry = base.settings, base.metrics, dispatch.registry
    output = Output(
        tokenizer, settings.grammar_limits, settings.tool_format, settings.reasoning_format
    )
    validator = Validator(settings.served_name, tokenizer, output, settings.deadlines)
    broadcast = _broadcast(base, dispatch)
    live = LiveEndpoint(broadcast, settings.write_timeout) if settings.live == "auto" else None
    accounts = Accounts(broadcast, base.traces, dispatch.placement.policy)
    generation = Generation(
        validator,
        tokenizer,
        registry,
        dispatch.orchestrator,
        metrics,
        accounts,
        settings.write_timeout,
    )
    kept = KeepLimits(
        seconds=settings.idempotency_seconds,
        bytes=settings.idempotency_bytes,
        answers=settings.idempotency_answers,
        grace=settings.idempotency_grace,
    )
    idempotency = Idempotency(kept, settings.write_timeout, metrics, base.clock)
    status = Status(
        settings.served_name,
        base.identity,
        registry,
        dispatch.placement,
        dispatch.waiting,
        dispatch.admission,
        metrics,
        base.links,
    )
    callers = Callers(base.keys, metrics)
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
    return _Surface(public, admin, broadcast, idempotency, output)


def _broadcast(base: _Base, dispatch: _Dispatch) -> Broadcast:
    feed, paces = Feed(), Paces()
    return Broadcast(
        feed,
        Workers(lambda: dispatch.registry.members, feed, paces, time.monotonic),
        paces,
        Figures(
            instance_id=base.identity.instance_id,
            model=base.settings.served_name,
            placement=dispatch.placement.policy,
            queued_tokens=lambda: dispatch.admission.tokens,
            waiting=lambda: len(dispatch.waiting),
        ),
    )
