"""One gateway's session: what it submits runs here, and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from baton import wire
from baton.errors import (
    BatonError,
    ClientGone,
    DecodeLost,
    DecodeSilent,
    InternalError,
    InvalidRequest,
)
from baton.generation import AttemptKey
from baton.identity import PROTOCOL
from baton.liveness import Liveness, PeerSilent
from baton.tasks import group
from baton.v1 import decode_pb2
from decode_worker.attempt import Attempts
from decode_worker.choice import Choice
from decode_worker.outbox import Outbox
from decode_worker.prefill_client import Target
from decode_worker.report import Report
from decode_worker.spans import begin
from model.worker.requests import from_wire
from model.worker.runtime import Runtime

log = structlog.get_logger(__name__)

Requests = AsyncIterator[decode_pb2.SessionRequest]
Write = Callable[[decode_pb2.SessionEvent], Awaitable[None]]


class Session:
    """Submits and cancels come up, tokens and ends go down.

    Every attempt, with all its choices, is a child task of ``run``: when the session ends, however
    it ends, all of them are cancelled and over before ``run`` returns. The reader awaits nothing
    but the next message; only the writer waits for the gateway.
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
        self.protocol = PROTOCOL  #: of the gateway, once it has said hello
        self._running: dict[AttemptKey, _Running] = {}

    async def run(self) -> None:
        """Returns when the worker leaves. Raises ClientGone when the gateway ends the session,
        DecodeLost when it no longer listens, DecodeSilent when it is not heard any more, BatonError
        for what breaks the contract."""
        self.protocol = await self._handshake()
        async with group() as tasks:
            reader = tasks.create_task(self._read(tasks), name="session reader")
            writer = tasks.create_task(self._send(), name="session writer")
            beat = tasks.create_task(self._beat(), name="session beat")
            guard = tasks.create_task(self._require_reading(), name="session guard")
            for task in (reader, writer, beat, guard):
                self._runtime.census.stand(task)
            await self._runtime.leaving.wait()
            self._outbox.close()
            await writer
            for task in (reader, beat, guard, *(r.task for r in self._running.values())):
                task.cancel()

    async def _handshake(self) -> int:
        """Hello both ways; a gateway whose protocol version is not spoken here is refused. Returns
        that version."""
        try:
            first = await asyncio.wait_for(anext(self._requests), self._runtime.beat.patience)
        except (StopAsyncIteration, TimeoutError):
            raise InvalidRequest("the session did not begin with a hello") from None
        if first.WhichOneof("message") != "hello":
            raise InvalidRequest("the first message of a session must be its hello")
        theirs = wire.identity_from_wire(first.hello)
        hello = wire.identity_to_wire(self._runtime.identity)
        await self._write(decode_pb2.SessionEvent(hello=hello))
        return theirs.protocol

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

    async def _beat(self) -> None:
        """Signs of life both ways. If the gateway lives, it is not heard: its end of the session
        would go on for another three beats, and so would the next session."""
        try:
            await self._liveness.run(self._outbox.beat)
        except PeerSilent as silence:
            raise DecodeSilent(str(silence)) from None

    async def _require_reading(self) -> None:
        await self._outbox.overflow.wait()
        raise DecodeLost(f"the gateway leaves more than {self._queue_limit} tokens unread")

    # -- attempts ------------------------------------------------------------------------------

    def _submit(self, tasks: asyncio.TaskGroup, submit: decode_pb2.Submit) -> None:
        started = submit.generation
        indices = (started.choice_index, *started.more_choices)
        keys = [AttemptKey(started.request_id, started.attempt, index) for index in indices]
        if len(set(keys)) < len(keys) or not self._running.keys().isdisjoint(keys):
            for key in set(keys):
                self._cancel(key)
                error = f"attempt {key.attempt} of {key.request_id} was submitted twice"
                Choice(key, self._outbox, self.protocol).end(InvalidRequest(error))
            return
        choices = [Choice(key, self._outbox, self.protocol) for key in keys]
        task = tasks.create_task(self._attempt(choices, submit), name="attempt")
        running = _Running(task, choices)
        self._running.update(dict.fromkeys(keys, running))
        task.add_done_callback(lambda _: self._forget(running))

    def _cancel(self, key: AttemptKey) -> None:
        """Nothing of a choice is said from here on, and nothing of it stays."""
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel(key)

    def _forget(self, running: _Running) -> None:
        for choice in running.choices:
            if self._running.get(choice.key) is running:
                del self._running[choice.key]

    async def _attempt(self, choices: list[Choice], submit: decode_pb2.Submit) -> None:
        """Run one attempt; whatever ends it is told for each choice, unless that was cancelled."""
        outcome: BatonError | None = None
        # For every line that is logged in this task and those that it makes.
        structlog.contextvars.bind_contextvars(request_id=submit.generation.request_id)
        try:
            with self._runtime.census.call():
                generation = from_wire(submit.generation, self._runtime.max_model_len)
                report = None
                if submit.tell_progress:
                    report = Report(generation.key, self._outbox.progress)
                with begin(self._runtime.tracing, generation).during() as span:
                    await self._attempts.run(generation, _target(submit), choices, span, report)
        except BatonError as error:
            outcome = error
            log.info("attempt ended early", code=error.code, reason=str(error))
        except Exception as error:
            log.exception("attempt failed")
            outcome = InternalError(f"attempt failed: {error!r}")
        if outcome is not None:
            for choice in choices:
                choice.end(outcome)


@dataclass(frozen=True, slots=True)
class _Running:
    """An attempt's task, and the choices that it runs for."""

    task: asyncio.Task[None]
    choices: list[Choice]

    def cancel(self, key: AttemptKey) -> None:
        """Cancel one choice, and the whole attempt once nobody wants any."""
        for choice in self.choices:
            if choice.key == key:
                choice.cancel()
        if all(choice.over for choice in self.choices):
            self.task.cancel()


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


def _key(message: decode_pb2.Cancel) -> AttemptKey:
    return AttemptKey(message.request_id, message.attempt, message.choice_index)
