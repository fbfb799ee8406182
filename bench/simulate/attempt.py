"""One attempt of a request: on a decode worker, and on a prefill worker beside it."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from baton.errors import WorkerFull
from baton.sampling import SamplingSpec
from bench.simulate.clock import PS, Clock
from bench.simulate.jobs import Job
from bench.simulate.machine import Machine
from bench.simulate.network import Network
from bench.simulate.scheduler import TOKEN
from decode_worker.prefill_client import Target
from gateway.placement import Place
from model.engine.sequence import SequenceRequest


class Asks(Protocol):
    """The request at the gateway. Times are those at which it hears, in ps."""

    def began(self, cached: int, *, local: bool, at: int) -> None: ...
    def went_on(self, at: int) -> None: ...
    def ended(self, at: int) -> None: ...
    def full(self, *, prefill: bool) -> None: ...
    def preempted(self, generated: int) -> None: ...


@lru_cache(maxsize=65_536)
def _spec(output: int) -> SamplingSpec:
    return SamplingSpec(max_tokens=output)


class Attempt:
    """From submit to the last token. Is what the decode worker's node tells of its sequence; what
    the prefill worker's tells goes to ``Handoff``."""

    def __init__(
        self,
        clock: Clock,
        network: Network,
        hop: int,
        asks: Asks,
        job: Job,
        generated: int,
        decode: Machine,
        prefill: Machine | None,
        place: Place,
    ) -> None:
        self._clock = clock
        self._network = network
        self._hop = hop
        self._asks = asks
        self._job = job
        self._generated = generated
        self._decode = decode
        self._prefill = prefill
        self._target: Target | None = None
        if place.prefill is not None:
            chosen = place.prefill
            self._target = Target(
                chosen.address,
                chosen.instance_id,
                chosen.queued_tokens,
                chosen.report.load.prefill_token,
            )
        self._over = False
        self._id = 0  # on the decode worker
        self._hit = 0
        self._handoff: Handoff | None = None
        clock.after(hop, self._reserve)

    def cancel(self) -> None:
        """Give everything up; idempotent."""
        self._over = True
        if self._id:
            self._decode.node.cancel(self._id)
        if self._handoff is not None:
            self._handoff.cancel()

    def _request(self, *, keep: bool = False, receive: bool = False) -> SequenceRequest:
        return SequenceRequest(
            prompt_ids=self._job.ids,
            spec=_spec(self._job.output),
            generated_ids=(TOKEN,) * self._generated,
            keep=keep,
            export=keep,
            receive=receive,
        )

    def _reserve(self) -> None:
        """The decode worker has heard of it."""
        if self._over:
            return
        chooser, node = self._decode.chooser, self._decode.node
        try:
            reserved = node.add(self._request(receive=chooser.receives(self._target)), self)
        except WorkerFull:
            self._refused(prefill=False)
            return
        self._id, self._hit = reserved.seq_id, reserved.hit_tokens
        if self._prefill is not None and not chooser.stays(self._target, reserved):
            self._clock.after(self._hop, self._hand_off)

    def _hand_off(self) -> None:
        """The prefill worker has heard of it."""
        if self._over or self._prefill is None:
            return
        handoff = Handoff(self, self._prefill, self._decode, self._network, self._hit)
        try:
            reserved = self._prefill.node.add(self._request(keep=True), handoff)
        except WorkerFull:
            self._refused(prefill=True)
            return
        handoff.accepted(reserved.seq_id, reserved.hit_tokens)
        self._handoff = handoff

    def _refused(self, *, prefill: bool) -> None:
        self.cancel()
        hops = 2 if prefill else 1
        self._clock.after(hops * self._hop, lambda: self._asks.full(prefill=prefill))

    # -- of the decode worker ----------------------------------------------------------------

    def chunk(self, end: int, took: int) -> None:
        """It hands nothing over."""

    def first(self) -> None:
        self._asks.began(self._hit, local=True, at=self._clock.now + self._hop)

    def second(self) -> None:
        self._asks.went_on(self._clock.now + self._hop)

    def ended(self) -> None:
        self._over = True
        self._asks.ended(self._clock.now + self._hop)

    def preempted(self, generated: int) -> None:
        told = self._handoff is not None and self._handoff.drawn
        self.cancel()
        self._asks.preempted(max(generated, self._generated + told))

    # -- of the hand-off -----------------------------------------------------------------------

    def drawn(self, hit: int) -> None:
        """The prefill worker has the first token. If that is the last, nothing else is needed."""
        at = self._clock.now + 2 * self._hop
        self._asks.began(hit, local=False, at=at)
        if self._generated + 1 == self._job.output:
            self.cancel()
            self._asks.ended(at)

    def received(self, handoff: Handoff) -> None:
        """All KV is here."""
        if self._over or self._target is None:
            return
        self._decode.node.activate(self._id)
        self._decode.chooser.handed_over(
            self._target,
            nbytes=handoff.nbytes,
            tail_s=(self._clock.now - handoff.drawn_at) / PS,
            hit=self._hit,
            hit_there=handoff.hit,
        )
        self._clock.after(self._hop, handoff.cancel)  # it is told, and frees its blocks


class Handoff:
    """A prompt on a prefill worker, and its KV on the way."""

    def __init__(
        self, attempt: Attempt, prefill: Machine, decode: Machine, network: Network, start: int
    ) -> None:
        """``start``: tokens that the decode worker has already."""
        self._attempt = attempt
        self._prefill = prefill
        self._decode = decode
        self._network = network
        self._clock = attempt._clock
        self._start = self._sent = start
        self._id = 0
        self.hit = 0  #: tokens cached on the prefill worker
        self.drawn = False
        self.drawn_at = 0
        self._there = 0  # ps: when the last KV offered so far is over there

    @property
    def nbytes(self) -> int:
        """Of KV, moved so far."""
        return (self._sent - self._start) * self._network.token_bytes

    def accepted(self, seq_id: int, hit: int) -> None:
        self._id, self.hit = seq_id, hit

    def cancel(self) -> None:
        """Idempotent."""
        self._prefill.node.cancel(self._id)

    def chunk(self, end: int, took: int) -> None:
        if end > self._sent:
            out, into, now = self._prefill.out, self._decode.into, self._clock.now
            self._there = self._network.carry(end - self._sent, now, took, out, into)
            self._sent = end

    def first(self) -> None:
        clock = self._clock
        self.drawn, self.drawn_at = True, clock.now
        done = max(self._there, clock.now) + self._network.delay
        self._attempt.drawn(self.hit)
        clock.at(done, lambda: self._attempt.received(self))

    def second(self) -> None:
        """It decodes nothing."""

    def ended(self) -> None:
        """The first token is the last: ``drawn`` has said so."""

    def preempted(self, generated: int) -> None:
        """Kept sequences give way last, so it was alone; the attempt begins anew."""
        self._attempt.preempted(generated)
