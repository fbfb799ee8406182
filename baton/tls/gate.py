"""Who may call what: checked for every call, by the certificate of its connection."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc

from baton.guarded import Context, Handler, guarded
from baton.tls.names import PARTIES, WORKERS, Name, Party, names_in
from baton.tls.refusals import Refusals

_KV_READERS = frozenset({Party.DECODE, Party.RELAY})
_WATCHERS = frozenset({Party.GATEWAY, Party.RELAY, Party.ADMIN})

#: Method or service -> who may call it; a method before its service, and what is in neither is for
#: nobody.
RULES: Mapping[str, frozenset[Party]] = {
    "/baton.v1.PrefillService": _KV_READERS,
    "/baton.v1.KvService": _KV_READERS,
    "/baton.v1.DecodeService": frozenset({Party.GATEWAY}),
    "/baton.v1.WorkerService": frozenset({Party.GATEWAY, Party.ADMIN}),
    "/baton.v1.WorkerService/Watch": _WATCHERS,
    "/baton.v1.MembershipService": _WATCHERS,
    "/baton.v1.MembershipService/Join": WORKERS,
    "/baton.v1.MembershipService/Leave": WORKERS,
    "/grpc.health.v1.Health": PARTIES,
}

#: Why a peer was refused, as it is counted.
REASONS = NO_CALL, NO_NAME, WRONG_ROLE, WRONG_ID = "no_call", "no_name", "wrong_role", "wrong_id"

#: Seconds from the start of a handshake to the first call on its connection, at most.
HANDSHAKE = 5.0
#: Connections that have made a call, remembered by address and port.
_REMEMBERED = 4096


def allowed(method: str) -> frozenset[Party]:
    """Who may call ``method``, such as "/baton.v1.WorkerService/Watch"."""
    return RULES.get(method) or RULES.get(method.rpartition("/")[0], frozenset())


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Lets a call pass if its caller's certificate names a role that may make it.

    gRPC does not tell of handshakes that fail, only that one begins. A connection from which no
    call has come some seconds later is taken for refused: it showed no certificate, or one that
    is expired or of another authority; or it was somebody's look whether the port is open.
    """

    def __init__(self, domain: Callable[[], str]) -> None:
        """``domain``: the trust domain, asked for every call."""
        self._domain = domain
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._handshakes = 0
        self._arrived = 0  # connections that have made a call
        self._peers: OrderedDict[str, None] = OrderedDict()
        self.refusals = Refusals()

    def handshake(self) -> None:
        """One begins; called by gRPC, on any thread."""
        with self._lock:
            self._handshakes += 1
            begun = self._handshakes
        with suppress(RuntimeError):  # the loop is closed: nobody counts any more
            self._loop.call_soon_threadsafe(
                self._loop.call_later, HANDSHAKE, self._count_silent, begun
            )

    def _count_silent(self, begun: int) -> None:
        """Of the first ``begun`` handshakes, all that would lead to a call have by now."""
        missing = begun - self._arrived - self.refusals.counts[NO_CALL]
        if missing > 0:
            message = "no certificate that is accepted here, or no call"
            self.refusals.add(NO_CALL, message, missing)

    def names(self, context: Context) -> frozenset[Name]:
        """Who calls: its names in our own trust domain."""
        uris = context.auth_context().get("peer_uri", ())
        domain = self._domain()
        return frozenset(
            name
            for name in names_in(uri.decode(errors="replace") for uri in uris)
            if name.domain == domain
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)

        async def check(_: Any, context: Context) -> None:
            await self._check(method, context)

        return handler and guarded(handler, check)

    async def _check(self, method: str, context: Context) -> None:
        """Aborts the call unless it may be made."""
        peer = context.peer()
        self._arrive(peer)
        names, may = self.names(context), allowed(method)
        if any(name.party in may for name in names):
            return
        if names:
            why, named = WRONG_ROLE, " and ".join(sorted(map(str, names)))
        else:
            why, named = NO_NAME, f"no role in the trust domain {self._domain()!r}"
        callers = ", ".join(sorted(party.value for party in may)) or "nobody"
        message = f"the certificate names {named}; {method} is for {callers}"
        self.refusals.add(why, message, peer=peer)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, message)

    def _arrive(self, peer: str) -> None:
        if peer in self._peers:
            self._peers.move_to_end(peer)
            return
        self._peers[peer] = None
        self._arrived += 1
        if len(self._peers) > _REMEMBERED:
            self._peers.popitem(last=False)
