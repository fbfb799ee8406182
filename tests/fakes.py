"""A decode (or prefill) worker without an engine, scripted by the test, over real gRPC; and a
checkpoint directory with a byte-level tokenizer, all that the gateway needs of a model."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baton import channels, wire
from baton.errors import BatonError
from baton.generation import AttemptKey, FinishReason, Generation, Timings, TokenLogprobs
from baton.identity import PROTOCOL, CompatibilityClass, Identity, new_instance_id
from baton.membership import Entry
from baton.v1 import (
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    membership_pb2,
    worker_pb2,
    worker_pb2_grpc,
)

MODEL = "toy"
CONTEXT = 2048
#: Ids of the toy tokenizer: 0 to 255 are bytes in the order of GPT-2's alphabet.
EOS, USER, ASSISTANT, SYSTEM = 256, 257, 258, 259
VOCAB_SIZE = 260
CLASS = CompatibilityClass(model_revision="toy-1", layers=2, kv_heads=1, head_size=8, block_size=16)
_SPECIALS = ("<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system goes first') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and a few special ones."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIALS])
    return tokenizer


def write_checkpoint(folder: Path, **config: Any) -> Path:
    """Everything but weights. Keyword arguments go over config.json's."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    written = {
        "tokenizer_config.json": {"eos_token": "<|eos|>", "chat_template": _TEMPLATE},
        "config.json": {
            "max_position_embeddings": CONTEXT,
            "vocab_size": VOCAB_SIZE,
            "eos_token_id": EOS,
            **config,
        },
    }
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def ids(text: str) -> list[int]:
    """Token ids of a text, as the toy tokenizer has them."""
    found: list[int] = byte_tokenizer().encode(text).ids
    return found


async def eventually(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition. Raises TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submit as it arrived; the script gets one for each of its choices."""

    generation: Generation
    prefill: decode_pb2.PrefillTarget  #: empty for local prefill

    @property
    def prefill_instance_id(self) -> str:
        return self.prefill.instance_id

    @property
    def key(self) -> AttemptKey:
        return self.generation.key


class FakeSession:
    """One open session; what the script says to the gateway."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[decode_pb2.SessionEvent | None] = asyncio.Queue()
        self.scripts: dict[AttemptKey, asyncio.Task[None]] = {}

    def tokens(
        self,
        key: AttemptKey,
        index: int,
        token_ids: Sequence[int],
        cached_tokens: int | None = None,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> None:
        """Send tokens, right or wrong."""
        delta = decode_pb2.TokenDelta(
            request_id=key.request_id,
            attempt=key.attempt,
            choice_index=key.choice_index,
            token_index=index,
            token_ids=token_ids,
            cached_tokens=cached_tokens,
            logprobs=[wire.logprobs_to_wire(told) for told in logprobs],
        )
        self._send(decode_pb2.StepOutput(tokens=[delta]))

    def finish(self, key: AttemptKey, reason: FinishReason, timings: Timings | None = None) -> None:
        """End an attempt well."""
        ended = _ended(key)
        ended.finish_reason = wire.finish_to_wire(reason)
        ended.timings.CopyFrom(wire.timings_to_wire(timings or Timings()))
        self._send(decode_pb2.StepOutput(ended=[ended]))

    def fail(self, key: AttemptKey, error: BatonError) -> None:
        """End an attempt early."""
        ended = _ended(key)
        ended.error.CopyFrom(wire.error_to_wire(error))
        self._send(decode_pb2.StepOutput(ended=[ended]))

    def close(self, error: BatonError | None = None) -> None:
        """End the session from the worker's side."""
        if error is not None:
            said = wire.error_to_wire(error)
            self.outgoing.put_nowait(decode_pb2.SessionEvent(error=said))
        self.outgoing.put_nowait(None)

    def _send(self, step: decode_pb2.StepOutput) -> None:
        self.outgoing.put_nowait(decode_pb2.SessionEvent(step=step))


def _ended(key: AttemptKey) -> decode_pb2.Ended:
    return decode_pb2.Ended(
        request_id=key.request_id, attempt=key.attempt, choice_index=key.choice_index
    )


#: What a worker does with a submit. Cancelled when the gateway cancels it or the session ends.
Script = Callable[[FakeSession, Submitted], Awaitable[None]]


def scored(token_id: int, count: int) -> TokenLogprobs:
    """As ``answering`` tells them: exact as float32, different for each id."""
    return TokenLogprobs(-token_id / 64, tuple((i, -i / 64) for i in range(count)))


def answering(
    text: str, *, pause: float = 0.0, stop_after: int | None = None, timings: Timings | None = None
) -> Script:
    """Generate ``text`` and an end of sequence, one token per message, from where it stands.

    ``stop_after`` hangs when so many tokens are there in all.
    """
    answer = [*ids(text), EOS]

    async def script(session: FakeSession, submitted: Submitted) -> None:
        spec = submitted.generation.sampling
        for index in range(len(submitted.generation.generated_ids), len(answer)):
            if index == stop_after:
                await asyncio.Event().wait()
            await asyncio.sleep(pause)
            told = [] if spec.logprobs is None else [scored(answer[index], spec.logprobs)]
            session.tokens(submitted.key, index, [answer[index]], logprobs=told)
            if answer[index] == EOS:
                session.finish(submitted.key, FinishReason.STOP, timings)
            elif index + 1 == spec.max_tokens:
                session.finish(submitted.key, FinishReason.LENGTH, timings)
                return

    return script


def echoing(script: Script) -> Script:
    """Where a grammar is of token ids alone it writes these, else it does as ``script``."""

    async def echo(session: FakeSession, submitted: Submitted) -> None:
        spec = submitted.generation.sampling
        written = [int(token_id) for token_id in re.findall(r"<\[(\d+)\]>", spec.grammar)]
        if not written:
            return await script(session, submitted)
        told = [] if spec.logprobs is None else [scored(i, spec.logprobs) for i in written]
        session.tokens(submitted.key, 0, written, logprobs=told)
        return session.finish(submitted.key, FinishReason.LENGTH)

    return echo


def failing(error: BatonError) -> Script:
    """Refuse every submit."""

    async def script(session: FakeSession, submitted: Submitted) -> None:
        session.fail(submitted.key, error)

    return script


@dataclass
class FakeWorker:
    """A worker process's gRPC face. ``async with`` starts and stops it."""

    script: Script = field(default_factory=lambda: answering("hello"))
    roles: Sequence[int] = (worker_pb2.ROLE_DECODE,)
    local_prefill: bool = False
    compatibility: CompatibilityClass = CLASS
    protocol: int = PROTOCOL
    max_model_len: int = CONTEXT
    blocks_free: int = 1000
    queued_tokens: int = 0
    prefill_us_per_token: float = 0.0
    model: str = MODEL
    running: int = 0
    steps: int = 0
    failing: bool = False
    draining: bool = False
    beat: float = 0.05
    kv_pairings: Sequence[worker_pb2.KvPairing] = ()
    #: What each status of a stream tells of its cache, one after the other, then nothing more.
    cache: Sequence[worker_pb2.CacheChanges] = ()
    port: int = 0
    silent: bool = False  #: sends nothing more, as a stopped process would
    mute: bool = False  #: nothing on its sessions, while it goes on to report how it is

    def __post_init__(self) -> None:
        self.instance_id = new_instance_id()
        self.watches: list[worker_pb2.WatchRequest] = []
        self.told: list[worker_pb2.SetRolesRequest | worker_pb2.DrainRequest] = []
        self.submits: list[Submitted] = []
        self.cancels: list[AttemptKey] = []
        self.sessions: list[FakeSession] = []
        self.reports = 0  #: statuses sent so far
        self.hellos: list[Identity] = []
        self._server = channels.server()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeWorker:
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(_Decode(self), self._server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_Status(self), self._server)
        self.port = channels.bind(self._server, "127.0.0.1", self.port)
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    async def kill(self) -> None:
        """End everything at once, as far as one process can do that to a part of itself."""
        await self._server.stop(None)

    async def submitted(self, count: int) -> Submitted:
        """Wait for the count-th submit."""
        await eventually(lambda: len(self.submits) >= count)
        return self.submits[count - 1]

    async def cancelled(self, count: int = 1) -> AttemptKey:
        """Wait for the count-th cancel."""
        await eventually(lambda: len(self.cancels) >= count)
        return self.cancels[count - 1]

    @property
    def entry(self) -> Entry:
        """What it registers."""
        message = membership_pb2.Entry(
            address=self.address,
            identity=self.identity(),
            roles=list(self.roles),  # type: ignore[arg-type]
            model=self.model,
        )
        return Entry.from_wire(message)

    def identity(self) -> common_pb2.Identity:
        mine = Identity(self.instance_id, self.compatibility, "fake", self.protocol)
        return wire.identity_to_wire(mine)

    def status(self, number: int = -1) -> worker_pb2.WorkerStatus:
        """``number``: of the status in its stream, from 0."""
        return worker_pb2.WorkerStatus(
            identity=self.identity(),
            roles=list(self.roles),  # type: ignore[arg-type]
            local_prefill=self.local_prefill,
            model=self.model,
            max_model_len=self.max_model_len,
            vocab_size=VOCAB_SIZE,
            draining=self.draining,
            failing=self.failing,
            load=worker_pb2.Load(
                blocks_free=self.blocks_free,
                queued_tokens=self.queued_tokens,
                running=self.running,
                steps=self.steps,
                prefill_us_per_token=self.prefill_us_per_token,
            ),
            transports=[worker_pb2.TransportCapability(name="grpc", version=1)],
            kv_pairings=self.kv_pairings,
            cache=self.cache[number] if 0 <= number < len(self.cache) else None,
        )


class _Status(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Watch(  # noqa: N802
        self, request: worker_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WorkerStatus]:
        self._worker.watches.append(request)
        for number in itertools.count():
            if not self._worker.silent:
                self._worker.reports += 1
                yield self._worker.status(number)
            await asyncio.sleep(self._worker.beat)

    async def SetRoles(  # noqa: N802
        self, request: worker_pb2.SetRolesRequest, context: Any
    ) -> worker_pb2.SetRolesReply:
        self._worker.told.append(request)
        return worker_pb2.SetRolesReply(roles=request.roles, handed_back=2, finishing=1)

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, context: Any
    ) -> worker_pb2.DrainReply:
        self._worker.told.append(request)
        if request.grace_ms > 10_000:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too long")
        return worker_pb2.DrainReply(handed_back=3)


class _Decode(decode_pb2_grpc.DecodeServiceServicer):
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[decode_pb2.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[decode_pb2.SessionEvent]:
        session = FakeSession()
        self._worker.sessions.append(session)
        reading = asyncio.create_task(self._read(requests, session))
        beating = asyncio.create_task(self._beat(session))
        try:
            yield decode_pb2.SessionEvent(hello=self._worker.identity())
            while (event := await session.outgoing.get()) is not None:
                if not self._worker.silent and not self._worker.mute:
                    yield event
        finally:
            for task in (reading, beating, *session.scripts.values()):
                task.cancel()

    async def _beat(self, session: FakeSession) -> None:
        while True:
            beat = decode_pb2.SessionEvent(heartbeat=common_pb2.Heartbeat())
            session.outgoing.put_nowait(beat)
            await asyncio.sleep(self._worker.beat)

    async def _read(
        self, requests: AsyncIterator[decode_pb2.SessionRequest], session: FakeSession
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    self._worker.hellos.append(wire.identity_from_wire(request.hello))
                case "submit":
                    submit = request.submit
                    generation = wire.generation_from_wire(submit.generation)
                    self._worker.submits.append(Submitted(generation, submit.prefill))
                    for part in generation.apart:
                        session.scripts[part.key] = asyncio.ensure_future(
                            self._worker.script(session, Submitted(part, submit.prefill))
                        )
                case "cancel":
                    cancel = request.cancel
                    key = AttemptKey(cancel.request_id, cancel.attempt, cancel.choice_index)
                    self._worker.cancels.append(key)
                    if key in session.scripts:
                        session.scripts[key].cancel()
