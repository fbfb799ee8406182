"""``python -m bench.gateway.worker``: decode workers without an engine, over the real contract.

Each is a gRPC server of its own, all in one process and loop. A sequence's first token goes out at
once, as a prefill worker's would, the others one per step, all of a step in one message.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from baton import channels, wire
from baton.generation import AttemptKey, FinishReason
from baton.identity import CompatibilityClass, Identity, new_instance_id
from baton.parent import exit_with_parent
from baton.v1 import common_pb2, decode_pb2, decode_pb2_grpc, worker_pb2, worker_pb2_grpc
from bench.gateway import steps
from bench.gateway.steps import LETTERS, Clock
from gateway.tokenizer import ModelTokenizer, load

_CLASS = CompatibilityClass(
    model_revision="letters", layers=1, kv_heads=1, head_size=2, block_size=16
)
#: More than any number of streams needs.
_BLOCKS = 10**8
#: Seconds between statuses, and between heartbeats.
_BEAT = 1.0


@dataclass(slots=True)
class _Sequence:
    request_id: str
    attempt: int
    choice: int
    index: int  #: of the next token
    limit: int  #: tokens in all

    @property
    def key(self) -> AttemptKey:
        return AttemptKey(self.request_id, self.attempt, self.choice)

    def next(self, token_id: int) -> decode_pb2.TokenDelta:
        delta = decode_pb2.TokenDelta(
            request_id=self.request_id,
            attempt=self.attempt,
            choice_index=self.choice,
            token_index=self.index,
            token_ids=(token_id,),
        )
        self.index += 1
        return delta

    def end(self) -> decode_pb2.Ended:
        return decode_pb2.Ended(
            request_id=self.request_id,
            attempt=self.attempt,
            choice_index=self.choice,
            finish_reason=wire.finish_to_wire(FinishReason.LENGTH),
            timings=common_pb2.Timings(),
        )


class Decoder(decode_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.WorkerServiceServicer):
    """One worker, for one gateway."""

    def __init__(self, model: str, tokenizer: ModelTokenizer, ids: dict[str, int]) -> None:
        self._model = model
        self._longest = tokenizer.context_length
        self._vocab_size = tokenizer.vocab_size
        self._ids = ids
        self._identity = wire.identity_to_wire(Identity(new_instance_id(), _CLASS, "letters"))
        self._running: dict[AttemptKey, _Sequence] = {}
        self._outgoing = asyncio.Queue[decode_pb2.SessionEvent]()
        self._steps = 0

    def step(self, letter: str) -> Callable[[], None]:
        """See Group."""
        self._steps += 1
        return self._output(list(self._running.values()), letter)

    def _output(self, of: Iterable[_Sequence], letter: str) -> Callable[[], None]:
        token_id = self._ids[letter]
        output = decode_pb2.StepOutput(tokens=[sequence.next(token_id) for sequence in of])
        for sequence in of:
            if sequence.index == sequence.limit:
                del self._running[sequence.key]
                output.ended.append(sequence.end())
        if not output.tokens:
            return lambda: None
        return lambda: self._outgoing.put_nowait(decode_pb2.SessionEvent(step=output))

    async def Session(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[decode_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[decode_pb2.SessionEvent]:
        beside = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._beat())]
        try:
            yield decode_pb2.SessionEvent(hello=self._identity)
            while True:
                yield await self._outgoing.get()
        finally:
            for task in beside:
                task.cancel()

    async def _beat(self) -> None:
        while True:
            beat = decode_pb2.SessionEvent(heartbeat=common_pb2.Heartbeat())
            self._outgoing.put_nowait(beat)
            await asyncio.sleep(_BEAT)

    async def _read(self, requests: AsyncIterator[decode_pb2.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._begin(request.submit.generation)
                case "cancel":
                    cancel = request.cancel
                    key = AttemptKey(cancel.request_id, cancel.attempt, cancel.choice_index)
                    self._running.pop(key, None)

    def _begin(self, wanted: common_pb2.Generation) -> None:
        generation = wire.generation_from_wire(wanted)
        for key in generation.keys:
            begun, limit = len(generation.generated_ids), generation.sampling.max_tokens
            sequence = _Sequence(key.request_id, key.attempt, key.choice_index, begun, limit)
            self._running[key] = sequence
            self._output([sequence], LETTERS[0])()

    async def Watch(  # noqa: N802
        self, request: worker_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WorkerStatus]:
        while True:
            yield worker_pb2.WorkerStatus(
                identity=self._identity,
                roles=[worker_pb2.ROLE_DECODE],
                local_prefill=True,
                model=self._model,
                max_model_len=self._longest,
                vocab_size=self._vocab_size,
                load=worker_pb2.Load(
                    blocks_free=_BLOCKS, running=len(self._running), steps=self._steps
                ),
            )
            await asyncio.sleep(_BEAT)


async def serve(model: str, checkpoint: Path, workers: int, clock: Clock) -> None:
    """Say where they listen, and step until the process ends."""
    tokenizer = load(str(checkpoint))
    of = tokenizer.vocabulary.tokenizer.token_to_id
    ids = {letter: i for letter in LETTERS if (i := of(letter)) is not None}
    if len(ids) < len(LETTERS):
        missing = "".join(set(LETTERS) - ids.keys())
        raise SystemExit(f"the vocabulary of {checkpoint} has no tokens for {missing}")
    # Nobody asks for the calls that it leaves out.
    decoders = [Decoder(model, tokenizer, ids) for _ in range(workers)]  # type: ignore[abstract]
    ports = list[int]()
    for decoder in decoders:
        server = channels.server()
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(decoder, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(decoder, server)
        ports.append(channels.bind(server, "127.0.0.1", 0))
        await server.start()
    print("ready", ",".join(f"127.0.0.1:{port}" for port in ports), flush=True)
    await steps.run(clock, decoders)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gateway.worker")
    parser.add_argument("--model", required=True, help="the name under which it is served")
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--clock", required=True, type=Path, help="file of times: see steps.py")
    parser.add_argument("--workers", required=True, type=int)
    asked = parser.parse_args()
    exit_with_parent()
    uvloop.run(serve(asked.model, asked.checkpoint, asked.workers, Clock(asked.clock)))


if __name__ == "__main__":
    main()
