"""What a worker does now, and the change of it while it runs.

    engine       refuses new sequences of a role that goes, takes those of one that comes; at once
    Watch        tells the new roles within 50 ms, so that gateways place nothing else here
    grace        sequences that decode may finish
    hand back    those that have not go the one way of recovery: placed again, no token lost
    Prefill      calls under way finish by themselves, beside whatever the worker does by then

The process, its weights, its connections and its prefix cache stay. Refusing is the engine's alone,
so both gRPC services are there all the time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from baton import identity
from baton.errors import Draining, IncompatiblePeer, InvalidRequest
from baton.identity import Role
from baton.tls.names import Party
from baton.v1 import worker_pb2
from model.worker.runtime import Profile, Runtime

log = structlog.get_logger(__name__)

_LOOK = 0.01  # seconds between looks at whether all have finished


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change came to."""

    handed_back: int = 0  #: sequences that decoded
    finishing: int = 0  #: Prefill calls that go on, though the worker no longer prefills


class Roles:
    """One worker's roles. All on the event loop. ``close`` it before the worker ends."""

    def __init__(
        self, runtime: Runtime, profile: Profile, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError for both roles in a pool that cannot be shared."""
        self._runtime = runtime
        self._profile = profile
        self._clock = clock
        self._since = clock()
        self._controllers: Counter[str] = Counter()
        self._changing: set[asyncio.Task[Changed]] = set()
        self._turn = asyncio.Lock()
        self.now = profile.roles
        if obstacle := self._obstacle(self.now):
            raise ValueError(f"--role {identity.named(self.now)}: {obstacle}")
        runtime.engine.take_roles(self.now)

    @property
    def possible(self) -> frozenset[Role]:
        """Those that it can take, and may by its certificate, which can be replaced."""
        return frozenset(self._profile.transports) - self._unnamed(self._profile.transports)

    @property
    def since(self) -> float:
        """Seconds since the last change, or the start."""
        return self._clock() - self._since

    @property
    def transports(self) -> Sequence[worker_pb2.TransportCapability]:
        """How it reads KV, or how it is read from where it only prefills."""
        side = Role.DECODE if Role.DECODE in self.now else Role.PREFILL
        return self._profile.transports[side]

    @property
    def in_control(self) -> str:
        """Instance id of the gateway that may change roles unasked; empty for none.

        One alone, and every worker that is watched by the same gateways names the same one.
        """
        return min(self._controllers, default="")

    @property
    def news(self) -> tuple[object, ...]:
        """What is to be told at once when it changes."""
        return (self.now, self.in_control)

    @contextmanager
    def controller(self, instance_id: str) -> Iterator[None]:
        """A gateway that would change roles watches, for the body."""
        self._controllers[instance_id] += 1
        try:
            yield
        finally:
            self._controllers[instance_id] -= 1
            self._controllers += Counter()  # without those that are gone

    async def change(
        self, roles: frozenset[Role], *, grace: float | None, controller: str = ""
    ) -> Changed:
        """Do ``roles`` from now on. What decodes and may no longer gets ``grace`` seconds, the
        settings' where that is None; then it is handed back.

        One change after the other. Once begun it is brought to its end, whoever stops waiting.
        Raises InvalidRequest, and IncompatiblePeer for what this worker cannot be told, or not
        by a ``controller`` that is not the one.
        """
        self._require(roles, controller)
        patience = self._profile.role_grace if grace is None else grace
        task = asyncio.create_task(self._change(roles, patience), name="change of roles")
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End a change under way; the worker leaves."""
        tasks = list(self._changing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _require(self, roles: frozenset[Role], controller: str) -> None:
        if not roles:
            raise InvalidRequest("roles names none that is known here", param="roles")
        if roles - self._profile.transports.keys():
            able = identity.named(frozenset(self._profile.transports))
            raise IncompatiblePeer(
                f"this process can only {able}; one that is to take any "
                "role is started as `python -m decode_worker --role prefill|decode|both`"
            )
        if unnamed := self._unnamed(roles - self.now):
            raise IncompatiblePeer(
                f"the certificate of this worker does not name {identity.named(unnamed)}: nobody "
                "would work with it; one that may change its role has a name for each "
                "(`baton certs --role prefill --role decode`)"
            )
        if obstacle := self._obstacle(roles):
            raise IncompatiblePeer(obstacle)
        if controller and controller != self.in_control:
            raise IncompatiblePeer(
                f"gateway {controller} does not decide on this worker's roles; "
                f"{self.in_control or 'nobody'} does"
            )

    def _unnamed(self, roles: Iterable[Role]) -> frozenset[Role]:
        links = self._runtime.links
        return frozenset(role for role in roles if not links.names(Party(role.value)))

    def _obstacle(self, roles: frozenset[Role]) -> str:
        """Why the pool allows no such roles; empty when it does."""
        blocks = self._runtime.runner.num_blocks
        if len(roles) > 1 and blocks < 2:
            return f"a KV pool of {blocks} block cannot be shared by both roles"
        return ""

    async def _change(self, roles: frozenset[Role], grace: float) -> Changed:
        async with self._turn:
            if roles == self.now:
                return Changed()
            began, going = self._clock(), self.now - roles
            engine = self._runtime.engine
            engine.take_roles(roles)
            self.now, self._since = roles, began
            log.info("roles", now=identity.named(roles), grace=grace)
            await self._finish(going, grace)
            handed_back = finishing = 0
            if Role.DECODE in going:
                gone = Draining("this worker does not decode any more")
                handed_back = engine.hand_back(Role.DECODE, gone)
            if Role.PREFILL in going:
                finishing = engine.live(Role.PREFILL)
            log.info(
                "roles changed",
                now=identity.named(roles),
                seconds=round(self._clock() - began, 3),
                handed_back=handed_back,
                finishing=finishing,
            )
            return Changed(handed_back, finishing)

    async def _finish(self, going: frozenset[Role], patience: float) -> None:
        """Until no sequence of these roles lives, ``patience`` seconds at most."""
        for _ in range(round(patience / _LOOK)):
            if not any(map(self._runtime.engine.live, going)):
                return
            await asyncio.sleep(_LOOK)
