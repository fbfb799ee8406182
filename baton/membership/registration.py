"""The worker's half of registration: joins every gateway it was given, and keeps joining."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc
import structlog

from baton.backoff import Backoff
from baton.liveness import Beat
from baton.membership import Entry
from baton.membership.source import Source
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party
from baton.v1 import membership_pb2, membership_pb2_grpc

log = structlog.get_logger(__name__)

#: Seconds between attempts to reach a gateway: short, as a restarted one knows nobody yet.
_RETRY_FIRST, _RETRY_LONGEST = 0.2, 2.0
#: Seconds that a gateway gets to answer, and to hear that the worker leaves.
_ANSWER, _FAREWELL = 3.0, 1.0


class Post(Protocol):
    """A place where a worker is registered."""

    name: str

    async def keep(self, entry: Callable[[], Entry], registered: Callable[[], None]) -> None:
        """Register and renew until it fails or is cancelled; ``registered`` is called whenever
        the registration holds. Raises ``PostLost``."""
        ...

    async def leave(self, entry: Entry) -> None:
        """End the registration at once. Raises ``PostLost``."""
        ...


class PostLost(Exception):
    """The server behind a post could not be reached, or refused; says why."""


class GatewayPost:
    """One gateway."""

    def __init__(self, address: str, links: Links = PLAIN) -> None:
        self.name = address
        self._links = links

    async def keep(self, entry: Callable[[], Entry], registered: Callable[[], None]) -> None:
        # A channel of its own, new at every attempt: gRPC's pauses between dials are not ours.
        async with self._links.connect(self.name, Party.GATEWAY, shared=False) as channel:
            stub = membership_pb2_grpc.MembershipServiceStub(channel)
            while True:
                request = membership_pb2.JoinRequest(entry=entry().to_wire())
                try:
                    reply = await stub.Join(request, timeout=_ANSWER)
                except grpc.aio.AioRpcError as error:
                    raise _lost(error) from error
                registered()
                await asyncio.sleep(reply.renew_ms / 1000)

    async def leave(self, entry: Entry) -> None:
        request = membership_pb2.LeaveRequest(address=entry.address, instance_id=entry.instance_id)
        async with self._links.connect(self.name, Party.GATEWAY, shared=False) as channel:
            stub = membership_pb2_grpc.MembershipServiceStub(channel)
            try:
                await stub.Leave(request, timeout=_FAREWELL)
            except grpc.aio.AioRpcError as error:
                raise _lost(error) from error


def _lost(error: grpc.aio.AioRpcError) -> PostLost:
    return PostLost(f"{error.code().name.lower()}: {error.details()}")


class Registration:
    """Keeps one worker registered at its posts. ``entry`` is asked for every renewal."""

    def __init__(self, posts: Sequence[Post], entry: Callable[[], Entry]) -> None:
        self._posts = posts
        self._entry = entry
        self.tasks = [
            asyncio.create_task(self._keep(post), name=f"registration {post.name}")
            for post in posts
        ]

    async def leave(self) -> None:
        """Stop renewing, and say so to every post that can be reached. Idempotent."""
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await asyncio.gather(*(self._say_goodbye(post) for post in self._posts))

    async def _say_goodbye(self, post: Post) -> None:
        try:
            await post.leave(self._entry())
        except PostLost as error:
            log.info("left without a word", gateway=post.name, reason=str(error))

    async def _keep(self, post: Post) -> None:
        """Stay registered for ever; says in the log when that is so, and when no longer."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_LONGEST)
        holds: bool | None = None

        def registered() -> None:
            nonlocal holds
            if not holds:
                log.info("registered", gateway=post.name)
            holds = True
            backoff.reset()

        while True:
            try:
                await post.keep(self._entry, registered)
            except PostLost as error:
                if holds is not False:
                    log.warning("not registered", gateway=post.name, reason=str(error))
                holds = False
            await asyncio.sleep(backoff.pause())


def posts(source: Source | None, beat: Beat, links: Links = PLAIN) -> list[Post]:
    """Where ``source`` says to register. Raises MembershipUnavailable."""
    if source is None:
        return []
    if source.kind == "etcd":
        # Its package is an extra, needed here alone.
        from baton.membership.etcd import EtcdPost

        return [EtcdPost(source.addresses, beat)]
    return [GatewayPost(address, links) for address in source.addresses]
