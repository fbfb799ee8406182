"""One gateway's session: what it submits runs here, and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from baton import wire
from baton.errors import BatonError, ClientGone, DecodeLost, InternalError, InvalidRequest
from baton.generation import AttemptKey
from baton.liveness import Liveness
from baton.tasks import group
from baton.v1 import common_pb2, decode_pb2
from decode_worker.attempt import Attempts, Finished
from decode_worker.outbox import Outbox
from decode_worker.prefill_client import Target
from model.worker.requests import from_wire
from model.worker.runtime import Runtime

log = structlog.get_logger(__name__)

Requests = AsyncIterator[decode_pb2.SessionRequest]
Write = Callable[[decode_pb2.SessionEvent], Awaitable[None]]


class Session:
    """Submits and cancels come up, tokens and ends go down.

    Every attempt is a child task of ``run``: when the session ends, however it ends, all of
    them are cancelled and over before ``run`` returns. The reader awaits nothing but the next
    message; only the writer waits for the gateway.
    """

    def __init__(
        self,
        runtime: Runtime,
        attempts: Attempts,
        requests: Requests,
        write: Write,
        *,
        queue_limit: int,
    ) -> None:
        self._runtime = runtime
        self._attempts = attempts
        self._requests = requests
        self._write = write
        self._queue_limit = queue_limit
        self._outbox = Outbox(queue_limit)
        self._liveness = Liveness(runtime.beat)
        self._running: dict[AttemptKey, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Returns when the worker leaves. Raises ClientGone when the gateway ends the session,
        PeerSilent or DecodeLost when it no longer listens, BatonError for what breaks the
        contract."""
        await self._handshake()
        async with group() as tasks:
            reader = tasks.create_task(self._read(tasks), name="session reader")
            writer = tasks.create_task(self._send(), name="session writer")
            beat = tasks.create_task(self._liveness.run(self._outbox.beat), name="session beat")
            guard = tasks.create_task(self._require_reading(), name="session guard")
            for task in (reader, writer, beat, guard):
                self._runtime.census.stand(task)
            await self._runtime.leaving.wait()
            self._outbox.close()
            await writer
            for task in (reader, beat, guard, *self._running.values()):
                task.cancel()

    async def _handshake(self) -> None:
        """Hello both ways; a gateway whose protocol version is not spoken here is refused."""
        try:
            first = await asyncio.wait_for(anext(self._requests), self._runtime.beat.patience)
        except (StopAsyncIteration, TimeoutError):
            raise InvalidRequest("the session did not begin with a hello") from None
        if first.WhichOneof("message") != "hello":
            raise InvalidRequest("the first message of a session must be its hello")
        wire.identity_from_wire(first.hello)
        hello = wire.identity_to_wire(self._runtime.identity)
        await self._write(decode_pb2.SessionEvent(hello=hello))

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        async for request in self._requests:
            self._liveness.heard()
            match request.WhichOneof("message"):
                case "submit":
                    self._submit(tasks, request.submit)
                case "cancel":
                    self._cancel(_key(request.cancel))
                case "hello":
                    raise InvalidRequest("a session begins once")
        raise ClientGone("the gateway closed the session")

    async def _send(self) -> None:
        while (event := await self._outbox.take()) is not None:
            await self._write(event)

    async def _require_reading(self) -> None:
        await self._outbox.overflow.wait()
        raise DecodeLost(f"the gateway leaves more than {self._queue_limit} tokens unread")

    # -- attempts ------------------------------------------------------------------------------

    def _submit(self, tasks: asyncio.TaskGroup, submit: decode_pb2.Submit) -> None:
        key = _key(submit.generation)
        if key in self._running:
            self._cancel(key)
            error = InvalidRequest(f"attempt {key.attempt} of {key.request_id} was submitted twice")
            self._outbox.ended(_ended(key, error))
            return
        task = tasks.create_task(self._attempt(key, submit), name="attempt")
        self._running[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))

    def _cancel(self, key: AttemptKey) -> None:
        """Nothing of the attempt is said from here on, and nothing of it stays."""
        task = self._running.pop(key, None)
        if task is not None:
            task.cancel()
            self._outbox.forget(key)

    def _forget(self, key: AttemptKey, task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]

    async def _attempt(self, key: AttemptKey, submit: decode_pb2.Submit) -> None:
        """Run one attempt; whatever ends it is told, unless it was cancelled."""
        outcome: Finished | BatonError
        try:
            with self._runtime.census.call():
                generation = from_wire(submit.generation, self._runtime.max_model_len)
                outcome = await self._attempts.run(
                    generation,
                    _target(submit),
                    lambda index, token_id: self._outbox.token(key, index, token_id),
                )
        except BatonError as error:
            outcome = error
            log.info(
                "attempt ended early", request=key.request_id, code=error.code, reason=str(error)
            )
        except Exception as error:
            log.exception("attempt failed", request=key.request_id)
            outcome = InternalError(f"attempt failed: {error!r}")
        self._outbox.ended(_ended(key, outcome))


def _target(submit: decode_pb2.Submit) -> Target | None:
    if not submit.HasField("prefill"):
        return None
    prefill = submit.prefill
    return Target(
        address=prefill.address,
        instance_id=prefill.instance_id,
        queued_tokens=prefill.queued_tokens,
        prefill_token_s=prefill.prefill_us_per_token / 1e6,
    )


def _key(message: decode_pb2.Cancel | common_pb2.Generation) -> AttemptKey:
    return AttemptKey(message.request_id, message.attempt, message.choice_index)


def _ended(key: AttemptKey, outcome: Finished | BatonError) -> decode_pb2.Ended:
    message = decode_pb2.Ended(
        request_id=key.request_id, attempt=key.attempt, choice_index=key.choice_index
    )
    if isinstance(outcome, Finished):
        message.finish_reason = wire.finish_to_wire(outcome.reason)
        message.timings.CopyFrom(wire.timings_to_wire(outcome.timings))
    else:
        message.error.CopyFrom(wire.error_to_wire(outcome))
    return message
