"""One long-lived stream per decode worker, shared by all requests placed there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable

import grpc
import structlog
from prometheus_client import Counter

from baton import tasks, wire
from baton.errors import BatonError, DecodeLost, DecodeSilent, PrefillLost
from baton.generation import AttemptKey, Generation
from baton.identity import Identity
from baton.liveness import Beat, Liveness, PeerSilent
from baton.tls.links import PLAIN, Links
from baton.tls.names import Party
from baton.v1 import common_pb2, decode_pb2, decode_pb2_grpc
from gateway.attempt import Attempt, Finished, Heed
from gateway.fleet import Worker
from gateway.turns import in_rounds

log = structlog.get_logger(__name__)

#: Disowned attempts remembered, so that each is answered with one cancel, not one per token.
_REMEMBERED = 4096
#: Attempts that are told something in one round of the loop: see ``gateway.turns``.
_ROUND = 256


class Session:
    """Submits and cancels up, tokens and ends down.

    The reader hands every token to its attempt without waiting; what is not the next token of a
    current attempt is dropped, counted and answered with a cancel. When the session ends, however
    it ends, every attempt on it ends with a retryable error.
    """

    def __init__(
        self,
        worker: Worker,
        identity: Identity,
        beat: Beat,
        stale_tokens: Counter,
        on_end: Callable[[], None],
        links: Links = PLAIN,
    ) -> None:
        self._address = worker.address
        self._instance_id = worker.instance_id
        self._takes_choices = worker.report.identity.takes_choices
        self._identity = identity
        self._liveness = Liveness(beat)
        self._stale_tokens = stale_tokens
        self._on_end = on_end
        self._links = links
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._disowned: OrderedDict[AttemptKey, None] = OrderedDict()
        self._outgoing: asyncio.Queue[decode_pb2.SessionRequest | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name=f"session {worker.address}")

    def submit(
        self, generation: Generation, prefill: Worker | None, heed: Heed | None = None
    ) -> list[Attempt]:
        """Start an attempt at each choice. Returns at once; whatever goes wrong ends attempts.

        ``heed`` is told how far the prompt is, if the worker is of a version that says so."""
        instance = "" if prefill is None else prefill.instance_id
        attempts = [self._attempt(key, generation, instance, heed) for key in generation.keys]
        for part in [generation] if self._takes_choices else generation.apart:
            self._submit(part, prefill, tell_progress=heed is not None)
        return attempts

    def _attempt(
        self, key: AttemptKey, generation: Generation, prefill: str, heed: Heed | None
    ) -> Attempt:
        next_index, limit = len(generation.generated_ids), generation.sampling.max_tokens
        wants = generation.sampling.logprobs is not None
        attempt = Attempt(
            key, next_index, limit, lambda: self._cancel(key), prefill, heed, logprobs=wants
        )
        self._attempts[key] = attempt
        return attempt

    def _submit(
        self, generation: Generation, prefill: Worker | None, *, tell_progress: bool
    ) -> None:
        submit = decode_pb2.Submit(
            generation=wire.generation_to_wire(generation), tell_progress=tell_progress
        )
        if prefill is not None:
            submit.prefill.address = prefill.address
            submit.prefill.instance_id = prefill.instance_id
            submit.prefill.queued_tokens = prefill.queued_tokens
            submit.prefill.prefill_us_per_token = prefill.report.load.prefill_token * 1e6
        self._outgoing.put_nowait(decode_pb2.SessionRequest(submit=submit))

    def give_up(self, worker: Worker, why: str) -> None:
        """End every attempt that waits for ``worker``'s engine: it hangs. Each may go on
        elsewhere."""
        for key, attempt in list(self._attempts.items()):
            if worker.instance_id == self._instance_id:
                self._cancel(key)
                attempt.end(DecodeLost(f"decode worker {worker.address} hangs: {why}"))
            elif attempt.awaits(worker.instance_id):
                self._cancel(key)
                attempt.end(PrefillLost(f"prefill worker {worker.address} hangs: {why}"))

    async def close(self) -> None:
        """End the session, and with it all that it submitted."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _cancel(self, key: AttemptKey) -> None:
        attempt = self._attempts.pop(key, None)
        if attempt is not None and attempt.ended is None:
            self._disown(key)

    def _disown(self, key: AttemptKey) -> None:
        """Tell the worker to stop an attempt that is not (or no longer) ours; once each."""
        if key in self._disowned:
            return
        self._disowned[key] = None
        if len(self._disowned) > _REMEMBERED:
            self._disowned.popitem(last=False)
        cancel = decode_pb2.Cancel(
            request_id=key.request_id, attempt=key.attempt, choice_index=key.choice_index
        )
        self._outgoing.put_nowait(decode_pb2.SessionRequest(cancel=cancel))

    async def _run(self) -> None:
        error: BatonError = DecodeLost(f"the session with {self._address} was closed")
        try:
            async with self._links.connect(self._address, Party.DECODE) as channel:
                error = await self._converse(decode_pb2_grpc.DecodeServiceStub(channel))
        finally:
            self._on_end()
            log.info("session ended", address=self._address, reason=error.message)
            await self._end_all(error)

    async def _end_all(self, error: BatonError) -> None:
        attempts, self._attempts = self._attempts, {}
        try:
            await in_rounds(list(attempts), _ROUND, lambda key: attempts.pop(key).end(error))
        finally:  # cancelled: nothing is to be kept going
            for attempt in attempts.values():
                attempt.end(error)

    async def _converse(self, stub: decode_pb2_grpc.DecodeServiceAsyncStub) -> BatonError:
        """Talk until one side stops; returns why it did."""
        call = stub.Session(self._requests())
        try:
            async with tasks.group() as beside:
                beside.create_task(self._liveness.run(self._send_beat))
                await self._read(call)
                raise DecodeLost(f"decode worker {self._address} closed the session")
        except DecodeSilent as deaf:
            error = DecodeSilent if self._liveness.steady else DecodeLost
            return error(f"decode worker {self._address} does not hear us: {deaf.message}")
        except BatonError as error:
            return error
        except PeerSilent as silence:
            return DecodeSilent(f"decode worker {self._address} is silent: {silence}")
        except grpc.aio.AioRpcError as error:
            return DecodeLost(
                f"the session with {self._address} broke: "
                f"{error.code().name.lower()}: {error.details()}"
            )
        finally:
            # Ends _requests: gRPC leaves its task waiting there when a call breaks by itself.
            self._outgoing.put_nowait(None)
            call.cancel()

    async def _requests(self) -> AsyncIterator[decode_pb2.SessionRequest]:
        yield decode_pb2.SessionRequest(hello=wire.identity_to_wire(self._identity))
        while (request := await self._outgoing.get()) is not None:
            yield request

    def _send_beat(self, sequence: int) -> None:
        beat = common_pb2.Heartbeat(sequence=sequence)
        self._outgoing.put_nowait(decode_pb2.SessionRequest(heartbeat=beat))

    async def _read(self, events: AsyncIterable[decode_pb2.SessionEvent]) -> None:
        """Raises the error that the worker ends the session with, or IncompatiblePeer."""
        async for event in events:
            self._liveness.heard()
            match event.WhichOneof("message"):
                case "step":
                    await self._deliver(event.step)
                case "hello":
                    self._check(wire.identity_from_wire(event.hello))
                case "error":
                    raise wire.error_from_wire(event.error)

    def _check(self, theirs: Identity) -> None:
        if theirs.instance_id != self._instance_id:
            raise DecodeLost(
                f"decode worker {self._address} was restarted: instance {theirs.instance_id} "
                f"answers, {self._instance_id} was expected"
            )

    async def _deliver(self, step: decode_pb2.StepOutput) -> None:
        for message in step.progress:
            progress = wire.progress_from_wire(message)
            attempt = self._attempts.get(progress.key)
            if attempt is not None and attempt.heed is not None:
                attempt.heed(progress)
        await in_rounds(step.tokens, _ROUND, self._hand_on)
        await in_rounds(step.ended, _ROUND, self._end)

    def _hand_on(self, delta: decode_pb2.TokenDelta) -> None:
        key = AttemptKey(delta.request_id, delta.attempt, delta.choice_index)
        attempt = self._attempts.get(key)
        if attempt is not None and _put(attempt, delta):
            if delta.HasField("cached_tokens"):
                attempt.cached_tokens = delta.cached_tokens
            return
        self._stale_tokens.inc(len(delta.token_ids))
        if attempt is not None:
            attempt.end(
                DecodeLost(
                    f"decode worker {self._address} sent token {delta.token_index} out of "
                    "order, or without its log probabilities"
                )
            )
            del self._attempts[key]
        self._disown(key)

    def _end(self, ended: decode_pb2.Ended) -> None:
        key = AttemptKey(ended.request_id, ended.attempt, ended.choice_index)
        attempt = self._attempts.pop(key, None)
        self._disowned.pop(key, None)
        if attempt is not None:
            attempt.end(_how(ended))


def _put(attempt: Attempt, delta: decode_pb2.TokenDelta) -> bool:
    try:
        logprobs = wire.logprobs_from_wire(delta.logprobs) if delta.logprobs else ()
    except ValueError:
        return False
    return attempt.put(delta.token_index, delta.token_ids, logprobs)


def _how(ended: decode_pb2.Ended) -> Finished | BatonError:
    if ended.HasField("error"):
        return wire.error_from_wire(ended.error)
    try:
        reason = wire.finish_from_wire(ended.finish_reason)
    except KeyError:
        return DecodeLost(f"unknown finish reason {ended.finish_reason}")
    return Finished(reason, wire.timings_from_wire(ended.timings))


class Sessions:
    """At most one live session per decode worker instance, opened when first needed."""

    def __init__(self, identity: Identity, beat: Beat, stale_tokens: Counter, links: Links) -> None:
        self._identity = identity
        self._beat = beat
        self._stale_tokens = stale_tokens
        self._links = links
        self._live: dict[str, Session] = {}

    def to(self, worker: Worker) -> Session:
        """The session with this instance; one that has ended is replaced by a new one."""
        instance = worker.instance_id
        session = self._live.get(instance)
        if session is None:
            session = self._live[instance] = Session(
                worker,
                self._identity,
                self._beat,
                self._stale_tokens,
                on_end=lambda: self._forget(instance),
                links=self._links,
            )
        return session

    def give_up(self, worker: Worker, why: str) -> None:
        """End every attempt, on any session, that waits for ``worker``'s engine."""
        for session in list(self._live.values()):
            session.give_up(worker, why)

    def _forget(self, instance: str) -> None:
        del self._live[instance]

    async def close(self) -> None:
        """End every session."""
        await asyncio.gather(*(session.close() for session in list(self._live.values())))
