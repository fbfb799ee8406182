"""One attempt at one choice of a request, from reservation to its last token."""

from __future__ import annotations

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from baton.errors import HandoffFailed, PrefillLost
from baton.generation import FinishReason, Generation, Timings, finish_reason
from baton.kv.framing import Shape
from baton.kv.ledger import HandOff, Ledger
from baton.kv.trace import NO_LAYER, Trace
from baton.kv.transport import Reader, Sink, Terms, choose
from baton.tasks import group, within
from decode_worker.prefill_choice import Chooser
from decode_worker.prefill_client import PrefillCall, PrefillClient, Target
from model.engine.events import TokenSampled
from model.worker.runtime import Runtime
from model.worker.sequences import LiveSequence

#: Seconds that a Prefill call gets to say why it ended, once its KV has.
_LAST_WORD = 0.1

#: (position among all generated ids, token id); called as each token is known, never waits.
OnToken = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended by itself."""

    reason: FinishReason
    timings: Timings


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
        self, generation: Generation, target: Target | None, on_token: OnToken
    ) -> Finished:
        """Generate to the end, prefilling at ``target``, or here when it is None or dearer.

        Raises BatonError when the attempt ends early. However it ends, cancellation included,
        its blocks and calls are gone when it has: blocks that the running step still uses are
        quarantined until that is over.
        """
        receive = self._chooser.receives(target)
        with self._runtime.sequence(generation, receive=receive) as sequence:
            sequence.on_token = on_token
            stays = self._chooser.stays(target, sequence.reservation)
            if target is None or stays:
                return await self._prefill_here(sequence, generation)
            reserved = sequence.reservation
            with (
                self._ledger.hand_off(target.address, target.instance_id) as hand_off,
                self._runtime.tracer.hand_off(
                    "decode", generation.key, reserved.hit_tokens, reserved.total_tokens
                ) as trace,
            ):
                return await self._prefill_at(target, sequence, generation, hand_off, trace)

    async def _prefill_here(self, sequence: LiveSequence, generation: Generation) -> Finished:
        async with within("prefill", generation.deadlines.prefill):
            await sequence.first
        end = await sequence.end
        assert end.timings is not None, "the last token comes with timings"
        timings = Timings(
            queue=end.timings.queued_s,
            prefill=end.timings.prefill_s,
            decode=end.timings.decode_s,
            decode_cached_tokens=end.timings.cached_tokens,
            prefill_instance_id=self._runtime.identity.instance_id,
        )
        return _finished(end, timings)

    async def _prefill_at(
        self,
        target: Target,
        sequence: LiveSequence,
        generation: Generation,
        hand_off: HandOff,
        trace: Trace | None,
    ) -> Finished:
        index, spec = len(generation.generated_ids), generation.sampling
        hit = sequence.reservation.hit_tokens
        sink = self._sink(sequence, trace)
        sink.urgent = False  # until the prompt is computed nothing waits for its KV
        checksums = self._ledger.wants_checksums(target.instance_id)
        async with (
            self._client.call(target, generation, hit, checksums=checksums) as call,
            group() as tasks,
        ):
            call.on_layer = sink.ready
            watch = tasks.create_task(_raise_early_end(sequence), name="attempt watch")
            accepted = await call.accepted
            sink.checksums = accepted.transport.checksums
            for layer in range(sink.shape.layers):
                sink.ready(layer, accepted.hit_tokens)
            terms = call.terms(accepted)
            hand_off.agreed(terms, sink)
            receiving = tasks.create_task(
                self._receive(terms, sink, sequence), name="attempt receive"
            )
            first = await call.first_token
            self._require_known(first.token_id)
            sequence.on_token(index, first.token_id)  # at once: it does not wait for KV
            sink.hurry()
            if trace is not None:
                trace.add("first token", NO_LAYER, sequence.reservation.total_tokens)
            reason = finish_reason(index + 1, first.token_id, spec)
            if reason is None:
                async with within("transfer", generation.deadlines.transfer):
                    await receiving
                self._runtime.engine.activate(sequence.seq_id, first.token_id)
                timings = _hand_off_timings(call, sink, hit)
                call.received(sink.bytes)
                hand_off.complete(timings.transfer)
                self._chooser.handed_over(
                    target,
                    nbytes=sink.bytes,
                    tail_s=timings.transfer_tail,
                    hit=hit,
                    hit_there=accepted.hit_tokens,
                )
                await asyncio.wait((call.done, sequence.end), return_when=FIRST_COMPLETED)
            receiving.cancel()
            watch.cancel()
        if reason is not None:
            return Finished(reason, replace(call.timings, decode_cached_tokens=hit))
        end = await sequence.end
        assert end.timings is not None, "the last token comes with timings"
        return _finished(end, replace(timings, decode=end.timings.decode_s))

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


def _finished(end: TokenSampled, timings: Timings) -> Finished:
    assert end.finish_reason is not None, "the last token says why it is the last"
    return Finished(end.finish_reason, timings)
