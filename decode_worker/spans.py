"""The decode worker's part of a trace.

decode attempt                server: one attempt, until all its choices are over
  prefill call                client: the prefill worker's spans are below it, and
    kv transfer               from the first byte to the last; an event as each layer is whole
  prefill compute             instead of these, where the prompt is computed here
  generate                    each choice, from its first decode step to its end
"""

from __future__ import annotations

import time
from asyncio import Future
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from baton.generation import Generation
from baton.kv.trace import NO_LAYER, Trace
from baton.tracing import Span, Tracing
from decode_worker.choice import Choice
from decode_worker.prefill_client import Target
from model.engine.events import SequenceTimings


def begin(tracing: Tracing, generation: Generation) -> Span:
    """The span of an attempt that was just submitted."""
    key = generation.key
    return tracing.begin(
        "decode attempt",
        generation.traceparent,
        attributes={
            "baton.request_id": key.request_id,
            "baton.attempt": key.attempt,
            "baton.choices": [one.choice_index for one in generation.keys],
            "baton.tokens": generation.tokens,
        },
    )


@contextmanager
def prefill_call(attempt: Span, target: Target, trace: Trace | None) -> Iterator[Span]:
    """The span of a Prefill call, which is made in the body. When that is over the transfer is told
    of, as far as ``trace`` has noted it."""
    called = {"server.address": target.address, "baton.prefill.instance_id": target.instance_id}
    with attempt.child("prefill call", "client", attributes=called).during() as span:
        try:
            yield span
        finally:
            if trace is not None and span.recording:
                _tell(span, trace)


def prefill_here(span: Span, since: float, timings: SequenceTimings) -> None:
    """The prompt was computed by this worker, from ``since`` on, and the first token just drawn."""
    computed = {
        "baton.queue_s": timings.queued_s,
        "baton.compute_s": timings.prefill_s,
        "baton.cached_tokens": timings.cached_tokens,
    }
    span.past("prefill compute", since + timings.queued_s, time.monotonic(), computed)


def generate(span: Span, since: float, choices: Iterable[Choice]) -> None:
    """Each of ``choices`` goes on by itself since then."""
    if not span.recording:
        return
    for choice in choices:
        named = {"baton.choice": choice.key.choice_index}
        going_on = span.child("generate", at=since, attributes=named)
        choice.sequence.end.add_done_callback(partial(_end, going_on))


def _end(span: Span, done: Future[Any]) -> None:
    if done.cancelled():
        span.note({"baton.cancelled": True})
        span.end()
    else:
        span.end(done.exception())


def _tell(span: Span, trace: Trace) -> None:
    layers: dict[int, list[float]] = {}
    for _, layer, _, at in trace.events:
        if layer != NO_LAYER:
            layers.setdefault(layer, []).append(at)
    if not layers:
        return
    took = [moments[-1] - moments[0] for _, moments in sorted(layers.items())]
    whole = span.child(
        "kv transfer",
        at=min(moments[0] for moments in layers.values()),
        attributes={"baton.layer_s": took},
    )
    for layer, moments in sorted(layers.items()):  # no spans: they take five times as long to make
        whole.event(f"kv layer {layer}", moments[-1])
    whole.end(at=max(moments[-1] for moments in layers.values()))
