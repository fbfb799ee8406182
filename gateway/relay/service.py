"""Who may call whom through the relay, and the calls that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import structlog
from google.protobuf.message import DecodeError

from baton import wire
from baton.errors import BatonError, ClientGone, InvalidRequest, RelayRefused
from baton.identity import Role
from baton.kv.connections import Connections
from baton.kv.relay import TARGET
from baton.settings import MAX_STRIPES
from baton.streams import Writer
from baton.tasks import group
from baton.tls.links import Links
from baton.v1 import kv_pb2, prefill_pb2
from gateway.fleet import Worker
from gateway.registry import Registry
from gateway.relay.admin import Metrics
from gateway.relay.forwarding import WINDOW, Context, Ended, forward_prefill, forward_read

log = structlog.get_logger(__name__)


class _Call:
    """One Prefill call under way, and the readings of its KV."""

    def __init__(self, target: Worker) -> None:
        self.target = target
        self.token = b""  #: of its KV; empty until it was accepted
        self.reads: set[asyncio.Task[None]] = set()
        self.stripes: set[int] = set()  #: that were asked for


class Relay:
    """Serves Prefill and Read. Holds nothing but what is under way."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        links: Links,
        *,
        patience: float,
        max_calls: int,
        max_reads: int,
    ) -> None:
        """``patience``: seconds that a caller gets to say who it is, and to hear a refusal."""
        self._registry = registry
        self._metrics = metrics
        self._patience = patience
        self._max_calls = max_calls
        self._max_reads = max_reads
        self._connections = Connections(WINDOW, links)
        self._by_token: dict[bytes, _Call] = {}
        self.calls = 0  #: Prefill calls under way
        self.reads = 0  #: KV streams under way
        self.leaving = False  #: takes no new Prefill calls
        metrics.open_calls.set_function(lambda: self.calls)
        metrics.open_reads.set_function(lambda: self.reads)

    async def close(self) -> None:
        """Close every connection to workers."""
        await self._connections.close()

    # -- Prefill -------------------------------------------------------------------------------

    async def prefill(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Forward one call, or refuse it with an error of the table as its last message."""
        self.calls += 1
        try:
            async with self._ending(context, _as_event) as write:
                await self._prefill(requests, context, write)
        finally:
            self.calls -= 1

    async def _prefill(
        self, requests: AsyncIterator[bytes], context: Context, write: Writer[bytes]
    ) -> None:
        if self.leaving:
            raise RelayRefused("it is leaving")
        if self.calls > self._max_calls:
            raise RelayRefused(f"it takes {self._max_calls} Prefill calls at once")
        target = self._target(context)
        first = await self._first(requests)
        self._require_caller(first)
        with self._call(target) as call:

            async def down(message: bytes) -> None:
                if not call.token:
                    self._learn_token(call, message)
                await write(message)

            async with self._connections.to(
                target.instance_id, target.address, "control"
            ) as connection:
                await forward_prefill(connection, first, requests, down)

    def _target(self, context: Context) -> Worker:
        named = dict(context.invocation_metadata() or ()).get(TARGET)
        if not named:
            raise InvalidRequest(f"a Prefill call to a relay names its prefill worker in {TARGET}")
        return self._live(str(named), Role.PREFILL)

    async def _first(self, requests: AsyncIterator[bytes]) -> bytes:
        try:
            return await asyncio.wait_for(anext(requests), self._patience)
        except (StopAsyncIteration, TimeoutError):
            raise InvalidRequest("the call did not begin with a start message") from None

    def _require_caller(self, first: bytes) -> None:
        """Raises unless the call begins with the identity of a registered decode worker."""
        try:
            request = prefill_pb2.PrefillRequest.FromString(first)
        except DecodeError as error:
            raise InvalidRequest(f"the first message is no PrefillRequest: {error}") from None
        if request.WhichOneof("message") != "start":
            raise InvalidRequest("the first message of a Prefill call must be its start")
        self._live(request.start.identity.instance_id, Role.DECODE)

    def _live(self, instance_id: str, role: Role) -> Worker:
        """Raises RelayRefused unless a worker of that role and instance is watched and well."""
        for worker in self._registry.roster.workers:
            if worker.instance_id == instance_id and role in worker.report.roles:
                return worker
        raise RelayRefused(
            f"no live {role.value} worker with instance id {instance_id!r} is registered"
        )

    @contextmanager
    def _call(self, target: Worker) -> Iterator[_Call]:
        """A call under way while the body runs; then its token is void and its reads end."""
        call = _Call(target)
        self._metrics.calls.inc()
        try:
            yield call
        finally:
            self._by_token.pop(call.token, None)
            for read in call.reads:
                read.cancel()

    def _learn_token(self, call: _Call, message: bytes) -> None:
        """From here on the call's KV can be read. Raises RelayRefused for a token in use."""
        try:
            event = prefill_pb2.PrefillEvent.FromString(message)
        except DecodeError as error:
            raise RelayRefused(f"the prefill worker sent no PrefillEvent: {error}") from None
        token = event.accepted.kv_token
        if token in self._by_token:
            raise RelayRefused("the prefill worker gave out one kv_token twice")
        if token:
            call.token = token
            self._by_token[token] = call

    # -- Read ----------------------------------------------------------------------------------

    async def read(self, request: bytes, context: Context) -> None:
        """Forward one reading of a live call's KV, and end it with the call."""
        self.reads += 1
        try:
            async with self._ending(context) as write:
                await self._read(request, write)
        finally:
            self.reads -= 1

    async def _read(self, request: bytes, write: Writer[bytes]) -> None:
        if self.reads > self._max_reads:
            raise RelayRefused(f"the relay takes {self._max_reads} KV streams at once")
        call = self._owner(request)
        target = call.target

        async def down(frame: bytes) -> None:
            await write(frame)
            self._metrics.kv_bytes.inc(len(frame))

        async with (
            self._connections.to(target.instance_id, target.address, "kv") as connection,
            group() as tasks,
        ):
            forwarding = forward_read(connection, request, down)
            reading = tasks.create_task(forwarding, name="relay read")
            call.reads.add(reading)
            reading.add_done_callback(call.reads.discard)
        if reading.cancelled():
            raise Ended(grpc.StatusCode.ABORTED, "the Prefill call has ended")

    def _owner(self, request: bytes) -> _Call:
        """The call that a reading belongs to, by its token. Raises RelayRefused, also for the
        second reading of a stripe: so those of a call are few."""
        try:
            asked = kv_pb2.KvReadRequest.FromString(request)
        except DecodeError as error:
            raise InvalidRequest(f"no KvReadRequest: {error}") from None
        call = self._by_token.get(asked.kv_token)
        if call is None:
            raise RelayRefused("no such hand-off goes through this relay; its call has ended")
        if asked.stripe in call.stripes or asked.stripe >= MAX_STRIPES:
            raise RelayRefused(
                f"stripe {asked.stripe} cannot be read: {sorted(call.stripes)} of at most "
                f"{MAX_STRIPES} were read already"
            )
        call.stripes.add(asked.stripe)
        return call

    # -- both ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _ending(
        self, context: Context, last_word: Callable[[BatonError], bytes] | None = None
    ) -> AsyncIterator[Writer[bytes]]:
        """A writer for the body; as the body ends, so does the call, whether or not its caller
        reads. ``last_word``: what is said of a refusal before that."""
        write: Writer[bytes] = Writer(context, self._patience)
        try:
            yield write
        except ClientGone:
            return
        except Ended as ended:
            await write.abort(ended.status, ended.message)
        except BatonError as error:
            self._metrics.refused.inc()
            log.warning("refused", peer=context.peer(), code=error.code, reason=error.message)
            last = last_word(error) if last_word else None
            await write.abort(error.grpc_code, error.message, last)


def _as_event(error: BatonError) -> bytes:
    return prefill_pb2.PrefillEvent(error=wire.error_to_wire(error)).SerializeToString()
