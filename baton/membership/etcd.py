"""Membership in etcd: each worker keeps a key under a lease, gateways read and watch them.

    /baton/workers/HOST:PORT -> the worker's Entry as JSON, for `etcdctl get --prefix` to show

A lease that is not renewed takes its key away. A key is overwritten by a restarted worker at the
same address, and is then under the new one's lease. Who has lost a key stays a member for some
seconds: an etcd that comes back without its data, or once all leases have expired, must not take
away workers who are well and about to register again. Who is not well is known from himself.

Needs the package etcd3aio (extra ``etcd``), of which the calls are used, over our own channels; its
watch is begun anew from a fresh reading every now and then, as an etcd that has lost its data
counts revisions from the start again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import grpc
import structlog
from google.protobuf import json_format

from baton import channels
from baton.backoff import Backoff
from baton.errors import IncompatiblePeer
from baton.liveness import Beat
from baton.membership import Entry, MembershipUnavailable
from baton.membership.registration import PostLost
from baton.membership.remembered import Remembered
from baton.v1 import membership_pb2

try:
    from etcd3aio import EtcdError, prefix_range_end
    from etcd3aio.kv import KVService
    from etcd3aio.lease import LeaseService
    from etcd3aio.watch import WatchService
except ImportError as error:
    raise MembershipUnavailable(
        "membership in etcd needs the package etcd3aio: pip install '.[etcd]' in Baton's clone "
        f"({error})"
    ) from error

log = structlog.get_logger(__name__)

PREFIX = "/baton/workers/"

#: Seconds that etcd gets to answer; between readings without news; that changes which come together
#: are gathered; between attempts to reach it.
_ANSWER, _REREAD, _GATHER = 3.0, 5.0, 0.02
_RETRY_FIRST, _RETRY_LONGEST = 0.2, 2.0
#: Seconds that a worker gets to register again; more than one attempt and a pause.
_RETURN = 7.0

_FAILURES = (EtcdError, grpc.aio.AioRpcError, TimeoutError)


class EtcdMembership:
    """Every key below ``PREFIX``, and those that were there until some seconds ago; while no server
    answers, those last read."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        """``endpoints``: host:port of one cluster's servers; the first that answers is asked."""
        self._endpoints = endpoints

    async def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Never ends; see ``Membership.watch``."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_LONGEST)
        last: frozenset[Entry] | None = None
        remembered = Remembered(_RETURN)
        while True:
            for endpoint in self._endpoints:
                try:
                    async with channels.connect(endpoint, shared=False) as channel:
                        async for read in _follow(channel):
                            backoff.reset()
                            entries = remembered.take(read)
                            if entries != last:
                                last = entries
                                yield entries
                except _FAILURES as error:
                    log.warning("etcd does not answer", at=endpoint, reason=_why(error))
            await asyncio.sleep(backoff.pause())


async def _follow(channel: grpc.aio.Channel) -> AsyncIterator[frozenset[Entry]]:
    """What is there, at every change and now and then. Raises one of _FAILURES."""
    keys = KVService(channel, max_attempts=1)
    while True:
        found = await keys.get(PREFIX, range_end=prefix_range_end(PREFIX), timeout=_ANSWER)
        entries = (_entry(pair.key, pair.value) for pair in found.kvs)
        yield frozenset(entry for entry in entries if entry is not None)
        await _until_changed(channel, found.header.revision)


async def _until_changed(channel: grpc.aio.Channel, revision: int) -> None:
    """Return when something changes after ``revision``, or it is time to read again anyway."""
    events = WatchService(channel).watch(
        PREFIX, range_end=prefix_range_end(PREFIX), start_revision=revision + 1
    )
    async with aclosing(events):
        try:
            async with asyncio.timeout(_REREAD):
                async for response in events:
                    if response.events or response.canceled:
                        break
        except TimeoutError:
            return
    await asyncio.sleep(_GATHER)


def _entry(key: bytes, value: bytes) -> Entry | None:
    """None, and a line in the log, for what no worker of this protocol has written."""
    try:
        message = json_format.Parse(value, membership_pb2.Entry(), ignore_unknown_fields=True)
        return Entry.from_wire(message)
    except (json_format.ParseError, UnicodeDecodeError, IncompatiblePeer) as error:
        log.warning("not a worker", key=key.decode(errors="replace"), reason=str(error))
        return None


class EtcdPost:
    """One cluster of etcd, where a worker keeps its key."""

    def __init__(self, endpoints: Sequence[str], beat: Beat) -> None:
        """``beat``: a key outlives its worker by as many beats as may be missed, in whole seconds,
        of which etcd itself demands about two."""
        self.name = f"etcd:{','.join(endpoints)}"
        self._endpoints = endpoints
        self._ttl = math.ceil(beat.patience)
        self._pause = self._ttl / beat.missed
        self._lease = 0
        self._next = 0

    async def keep(self, entry: Callable[[], Entry], registered: Callable[[], None]) -> None:
        """Tries the next server each time it is called."""
        endpoint = self._endpoints[self._next % len(self._endpoints)]
        self._next += 1
        try:
            async with channels.connect(endpoint, shared=False) as channel:
                leases = LeaseService(channel, max_attempts=1)
                self._lease = (await leases.grant(self._ttl, timeout=_ANSWER)).ID
                written: Entry | None = None
                while True:
                    if (now := entry()) != written:
                        await self._write(channel, now)
                        written = now
                    registered()
                    await asyncio.sleep(self._pause)
                    await self._renew(leases)
        except _FAILURES as error:
            raise PostLost(_why(error)) from error

    async def leave(self, entry: Entry) -> None:
        """Gives up the lease, and with it the key, unless another instance has it by now."""
        if not self._lease:
            return
        try:
            async with channels.connect(self._endpoints[0], shared=False) as channel:
                leases = LeaseService(channel, max_attempts=1)
                await leases.revoke(self._lease, timeout=_ANSWER)
        except _FAILURES as error:
            raise PostLost(_why(error)) from error

    async def _write(self, channel: grpc.aio.Channel, entry: Entry) -> None:
        value = json_format.MessageToJson(entry.to_wire(), indent=None)
        keys = KVService(channel, max_attempts=1)
        await keys.put(PREFIX + entry.address, value, lease=self._lease, timeout=_ANSWER)

    async def _renew(self, leases: LeaseService) -> None:
        """Raises PostLost when etcd no longer knows the lease, as after a stop of ours or a loss
        of its data: the caller registers again."""
        call = leases.keep_alive(self._lease)
        try:
            async with asyncio.timeout(_ANSWER):
                async for reply in call:
                    if reply.TTL > 0:
                        return
                    break
        finally:
            call.cancel()
        raise PostLost("the lease has expired")


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) or "no answer in time"
