"""Which way Prefill calls go: directly where the prefill worker can be reached, else by relay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from baton.kv import relay

log = structlog.get_logger(__name__)

#: Seconds that a prefill worker gets to take a connection before the relay is used.
REACH = 1.0
#: Seconds between attempts to reach a relayed one directly.
AGAIN = 30.0
#: Instances come and go: the oldest are tried afresh.
_KNOWN = 1024


@dataclass(frozen=True, slots=True)
class Route:
    """The way to one prefill instance."""

    relay: str = ""  #: host:port that calls go through; empty when they go directly
    why: str = ""  #: the instance was not reached directly; empty when that was not tried
    tried: float = 0.0  #: loop time of that

    def obstacle(self, transport: str) -> str:
        """Why KV cannot come by ``transport`` beside a call that goes this way; empty if it can."""
        if transport == relay.NAME and not self.relay:
            return "the prefill worker is reached directly"
        return self.why if transport in relay.DIRECT else ""


class Routes:
    """One route per prefill instance, found at first use. ``close`` it when nothing calls."""

    def __init__(
        self,
        relay_address: str | None,
        transports: Sequence[str],
        *,
        reach: float = REACH,
        again: float = AGAIN,
    ) -> None:
        """``transports``: what the settings allow; with none that needs a direct way, every call
        goes by relay."""
        self._relay = relay_address if relay.NAME in transports else None
        self._dials = self._relay is None or not relay.DIRECT.isdisjoint(transports)
        self._reach = reach
        self._again = again
        self._known: dict[str, Route] = {}
        self._trying: dict[str, asyncio.Task[Route]] = {}

    async def to(self, instance_id: str, address: str) -> Route:
        """The route to the instance at ``address``. One by relay is tried directly again now and
        then, beside the calls."""
        if self._relay is None:
            return Route()
        if not self._dials:
            return Route(self._relay)
        known = self._known.get(instance_id)
        if known is None:
            return await asyncio.shield(self._try(instance_id, address, self._relay))
        if known.relay and asyncio.get_running_loop().time() - known.tried > self._again:
            self._try(instance_id, address, known.relay)
        return known

    def lost(self, instance_id: str) -> None:
        """A call to the instance failed: whether it can be reached must be seen again."""
        known = self._known.get(instance_id)
        if known is not None and not known.relay:
            del self._known[instance_id]

    async def close(self) -> None:
        """Try nothing any more."""
        trying = set(self._trying.values())
        for task in trying:
            task.cancel()
        await asyncio.gather(*trying, return_exceptions=True)

    def _try(self, instance_id: str, address: str, through: str) -> asyncio.Task[Route]:
        """Find the route; whoever comes first tries for all."""
        task = self._trying.get(instance_id)
        if task is None:
            finding = self._find(instance_id, address, through)
            task = self._trying[instance_id] = asyncio.create_task(finding, name="prefill route")
            task.add_done_callback(lambda _: self._trying.pop(instance_id))
        return task

    async def _find(self, instance_id: str, address: str, through: str) -> Route:
        why = await _unreachable(address, self._reach)
        route = Route(through, why, asyncio.get_running_loop().time()) if why else Route()
        before = self._known.pop(instance_id, None)
        if before is None or before.relay != route.relay:
            say = log.warning if why else log.info
            say("prefill route", instance=instance_id, relay=route.relay, why=why)
        if len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[instance_id] = route
        return route


async def _unreachable(address: str, seconds: float) -> str:
    """Why no connection to ``address`` (host:port) can be made; empty when one was."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(seconds):
            connecting = asyncio.get_running_loop().create_connection(
                asyncio.Protocol, host.strip("[]"), int(port)
            )
            transport, _ = await connecting
        transport.abort()
        return ""
    except TimeoutError:
        return f"{address} could not be reached within {seconds:g} s"
    except (OSError, ValueError) as error:
        return f"{address} could not be reached: {error}"
