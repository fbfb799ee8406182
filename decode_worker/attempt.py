"""One attempt at a request, at one choice or several, from reservation to the last token."""

from __future__ import annotations

import asyncio
import time
from asyncio import FIRST_COMPLETED, Future
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from baton import wire
from baton.errors import HandoffFailed, Preempted, PrefillLost
from baton.generation import (
    FinishReason,
    Generation,
    Timings,
    TokenLogprobs,
    finish_reason,
)
from baton.kv.framing import Shape
from baton.kv.ledger import Ledger
from baton.kv.trace import Trace
from baton.kv.transport import Reader, Sink, Terms, choose
from baton.tasks import group, within
from baton.tracing import Span
from baton.v1 import prefill_pb2
from decode_worker import spans
from decode_worker.choice import Choice, Finished, Phases
from decode_worker.handing import Handing
from decode_worker.prefill_choice import Chooser
from decode_worker.prefill_client import PrefillCall, PrefillClient, Target
from decode_worker.report import Report
from model.engine.events import SequenceTimings
from model.worker.runtime import Runtime
from model.worker.sequences import LiveSequence

#: Seconds that a Prefill call gets to say why it ended, once its KV has.
_LAST_WORD = 0.1


class Attempts:
    """Runs attempts on one decode worker. Holds nothing itself: each attempt owns what it uses."""

    def __init__(
        self,
        runtime: Runtime,
        client: PrefillClient,
        readers: Sequence[Reader],
        ledger: Ledger,
        chooser: Chooser,
    ) -> None:
        self._runtime = runtime
        self._client = client
        self._readers = readers
        self._ledger = ledger
        self._chooser = chooser

    async def run(
        self,
        generation: Generation,
        target: Target | None,
        choices: Sequence[Choice],
        span: Span,
        report: Report | None = None,
    ) -> None:
        """Generate every choice to its end, prefilling at ``target``, or here when it is None or
        dearer. Each is told its tokens and its end; ``report``, if there is one, how far it is.

        Raises BatonError when the attempt ends early, for those of ``choices`` that are not over.
        However it ends, cancellation included, its blocks and calls are gone when it has: blocks
        that the running step still uses are quarantined until that is over.
        """
        if target is not None and target.instance_id == self._runtime.identity.instance_id:
            target = None  # a worker of both roles hands nothing over to itself
        constraint = await self._runtime.constraint(generation)
        receive = self._chooser.receives(target)
        tell = report is not None
        with self._runtime.sequence(generation, constraint, receive=receive, tell=tell) as sequence:
            for choice, own in zip(choices, sequence.choices, strict=True):
                choice.join(own)
            stays = self._chooser.stays(target, sequence.reservation)
            if target is None or stays:
                await self._prefill_here(sequence, generation, choices, span, report)
                return
            reserved = sequence.reservation
            with (
                self._ledger.hand_off(target.address, target.instance_id) as hand_off,
                self._runtime.tracer.hand_off(
                    "decode",
                    generation.key,
                    reserved.hit_tokens,
                    reserved.total_tokens,
                    wanted=span.recording,
                ) as trace,
                spans.prefill_call(span, target, trace) as calling,
            ):
                handing = Handing(target, sequence, hand_off, trace, span, report)
                called = replace(generation, traceparent=calling.traceparent)
                timings = await self._prefill_at(handing, called, choices)
            await _to_the_end(choices, lambda own: replace(timings, decode=own.decode_s))

    async def _prefill_here(
        self,
        sequence: LiveSequence,
        generation: Generation,
        choices: Sequence[Choice],
        span: Span,
        report: Report | None,
    ) -> None:
        here, since = self._runtime.identity.instance_id, time.monotonic()
        if report is not None:
            reserved = sequence.reservation
            report.begin(here, reserved.hit_tokens, reserved.total_tokens)
            sequence.on_chunk = report.computed

        def phases(own: SequenceTimings) -> Timings:
            return Timings(
                queue=own.queued_s,
                prefill=own.prefill_s,
                decode=own.decode_s,
                prefill_cached_tokens=own.cached_tokens,
                decode_cached_tokens=own.cached_tokens,
                prefill_instance_id=here,
            )

        async with within("prefill", generation.deadlines.prefill):
            first = await sequence.first
        if first.timings is not None:
            self._runtime.metrics.prefilled(first.timings)
            spans.prefill_here(span, since, first.timings)
            if report is not None:
                report.complete(phases(first.timings))
        spans.generate(span, time.monotonic(), choices)
        await _to_the_end(choices, phases)

    async def _prefill_at(
        self, handing: Handing, generation: Generation, choices: Sequence[Choice]
    ) -> Timings:
        """Call, forward the first tokens, receive KV and join the batch; returns the phases."""
        target, sequence = handing.target, handing.sequence
        hit = sequence.reservation.hit_tokens
        sink = self._sink(sequence, handing.trace)
        sink.urgent = False  # until the prompt is computed nothing waits for its KV
        checksums = self._ledger.wants_checksums(target.instance_id)
        async with (
            self._client.call(target, generation, hit, checksums=checksums) as call,
            group() as tasks,
        ):
            call.on_layer = handing.on_layer(sink)
            watch = tasks.create_task(_raise_early_end(sequence), name="attempt watch")
            accepted = await call.accepted
            sink.checksums = accepted.transport.checksums
            for layer in range(sink.shape.layers):
                sink.ready(layer, accepted.hit_tokens)
            terms = call.terms(accepted)
            handing.agreed(terms, accepted, sink)
            receiving = tasks.create_task(
                self._receive(terms, sink, sequence), name="attempt receive"
            )
            drawn = self._forward(await call.first_token, choices, generation)
            sink.hurry()
            handing.first_token()
            timings = replace(call.timings, decode_cached_tokens=hit)
            done = _ended_by(drawn, generation)
            if len(done) < len(drawn):
                for choice, reason in done.items():
                    choice.end(Finished(reason, timings))
                async with within("transfer", generation.deadlines.transfer):
                    await receiving
                going_on = {c: token for c, token in drawn.items() if not c.over}
                self._activate(sequence, going_on)
                timings = _hand_off_timings(call, sink, hit)
                call.received(sink.bytes)
                handing.complete(timings, going_on)
                self._chooser.handed_over(
                    target,
                    nbytes=sink.bytes,
                    tail_s=timings.transfer_tail,
                    hit=hit,
                    hit_there=accepted.hit_tokens,
                )
                news: list[Future[Any]] = [call.done, *(c.sequence.end for c in going_on)]
                await asyncio.wait(news, return_when=FIRST_COMPLETED)
            receiving.cancel()
            watch.cancel()
        for choice, reason in done.items():
            choice.end(Finished(reason, timings))
        return timings

    def _forward(
        self, first: prefill_pb2.FirstToken, choices: Sequence[Choice], generation: Generation
    ) -> dict[Choice, int]:
        """Say the first token of each choice at once: it does not wait for KV. Returns those of
        choices still wanted.

        A prefill worker of protocol 1 draws one only: the other choices are placed again.
        """
        index, drawn = len(generation.generated_ids), dict[Choice, int]()
        told = _told(first, generation)
        for choice, token_id, logprobs in zip(
            choices, (first.token_id, *first.more_token_ids), told, strict=False
        ):
            self._require_known(token_id)
            if not choice.over:
                cached = first.timings.prefill_cached_tokens
                choice.first_token(index, token_id, cached, logprobs)
                drawn[choice] = token_id
        for choice in choices[1 + len(first.more_token_ids) :]:
            choice.end(Preempted("its prefill worker draws the first token of one choice only"))
        return drawn

    def _activate(self, sequence: LiveSequence, drawn: Mapping[Choice, int]) -> None:
        """All KV is here: each choice joins the batch."""
        engine = self._runtime.engine
        if sequence.reservation.choices:
            engine.fork(sequence.seq_id, {c.sequence.seq_id: t for c, t in drawn.items()})
        else:
            for token_id in drawn.values():
                engine.activate(sequence.seq_id, token_id)

    def _require_known(self, token_id: int) -> None:
        """Raise HandoffFailed for a first token that no model of this class can have drawn."""
        vocabulary = self._runtime.vocab_size
        if token_id >= vocabulary:
            raise HandoffFailed(
                f"the first token {token_id} is outside the vocabulary of {vocabulary}"
            )

    def _sink(self, sequence: LiveSequence, trace: Trace | None) -> Sink:
        """Where the KV goes that this worker does not have yet."""
        reserved, compatibility = sequence.reservation, self._runtime.runner.compatibility
        shape = Shape.of(compatibility, reserved.hit_tokens, reserved.total_tokens)
        return Sink(shape, self._runtime.store, reserved.block_table, trace)

    async def _receive(self, terms: Terms, sink: Sink, sequence: LiveSequence) -> None:
        """Read all that is missing into the reserved blocks, held until no byte moves."""
        reader = choose(terms.choice.name, self._readers)
        with self._runtime.sequences.hold(sequence.seq_id):
            if sink.shape.total_bytes:
                try:
                    await reader.read(terms, sink)
                except PrefillLost:
                    # KV ends with its call, which is about to say why: that goes first.
                    await asyncio.sleep(_LAST_WORD)
                    raise
            sink.require_complete()


def _told(first: prefill_pb2.FirstToken, generation: Generation) -> Sequence[TokenLogprobs | None]:
    """The log probabilities of each first token. Raises HandoffFailed where they are asked for and
    not there, or not whole."""
    tokens = 1 + len(first.more_token_ids)
    if generation.sampling.logprobs is None:
        return [None] * tokens
    if len(first.logprobs) != tokens:
        raise HandoffFailed(
            f"{tokens} first tokens came with the log probabilities of {len(first.logprobs)}"
        )
    try:
        return wire.logprobs_from_wire(first.logprobs)
    except ValueError as error:
        raise HandoffFailed(f"the log probabilities of a first token: {error}") from None


async def _raise_early_end(sequence: LiveSequence) -> None:
    """Raise what ends the sequence early (preemption, drain), so that its hand-off ends too."""
    await asyncio.shield(sequence.end)


def _hand_off_timings(call: PrefillCall, sink: Sink, hit: int) -> Timings:
    """The phases so far; called when the last block has been written."""
    now = asyncio.get_running_loop().time()
    since = call.kv_since or call.first_token_at  # KV may overtake the word that it is there
    return replace(
        call.timings,
        transfer=now - since if sink.bytes else 0.0,
        transfer_tail=now - call.first_token_at,
        transfer_bytes=sink.bytes,
        decode_cached_tokens=hit,
    )


def _ended_by(drawn: Mapping[Choice, int], generation: Generation) -> dict[Choice, FinishReason]:
    """The choices whose first token is their last, and why."""
    count, spec = len(generation.generated_ids) + 1, generation.sampling
    reasons = {choice: finish_reason(count, token, spec) for choice, token in drawn.items()}
    return {choice: reason for choice, reason in reasons.items() if reason is not None}


async def _to_the_end(choices: Sequence[Choice], phases: Phases) -> None:
    """Each choice goes on by itself; returns when all are over."""
    ends = [choice.goes_on(phases) for choice in choices if not choice.over]
    if ends:
        await asyncio.wait(ends)
