"""One hand-off under way, and who hears of it: the ledger, a trace, a gateway that asked."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from baton.generation import Timings
from baton.kv.ledger import HandOff
from baton.kv.trace import NO_LAYER, Trace
from baton.kv.transport import Sink, Terms
from baton.tracing import Span
from baton.v1 import prefill_pb2
from decode_worker import spans
from decode_worker.choice import Choice
from decode_worker.prefill_client import OnLayer, Target
from decode_worker.report import Report
from model.worker.sequences import LiveSequence


@dataclass(frozen=True, slots=True)
class Handing:
    """From a prefill worker into the blocks of a sequence."""

    target: Target
    sequence: LiveSequence
    counted: HandOff
    trace: Trace | None
    span: Span  #: of the attempt
    report: Report | None

    def on_layer(self, sink: Sink) -> OnLayer:
        """What to do as the prefill worker says that KV may be read."""
        report, last = self.report, sink.shape.layers - 1
        if report is None:
            return sink.ready

        def ready(layer: int, end: int) -> None:
            sink.ready(layer, end)
            if layer == last:
                report.computed(end)

        return ready

    def agreed(self, terms: Terms, accepted: prefill_pb2.PrefillAccepted, sink: Sink) -> None:
        """The prefill side has accepted; what comes goes into ``sink``."""
        self.counted.agreed(terms, sink)
        if self.report is not None:
            total = self.sequence.reservation.total_tokens
            self.report.receives(sink, terms.choice.name)
            self.report.begin(terms.instance_id, accepted.hit_tokens, total)

    def first_token(self) -> None:
        """It is here."""
        if self.trace is not None:
            self.trace.add("first token", NO_LAYER, self.sequence.reservation.total_tokens)
        self.span.event("first token")

    def complete(self, timings: Timings, going_on: Iterable[Choice]) -> None:
        """All KV is here, and ``going_on`` have joined the batch."""
        self.counted.complete(timings.transfer, timings.transfer_tail)
        if self.report is not None:
            self.report.complete(timings)
        spans.generate(self.span, time.monotonic(), going_on)
