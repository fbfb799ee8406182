"""Spans by OpenTelemetry's SDK, sent over OTLP in batches by a thread of its exporter.

Imported by ``baton/tracing.py`` alone, and only where traces are asked for.
"""

from __future__ import annotations

import asyncio
import os
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton.errors import BatonError
from baton.tracing import NOTHING, Attributes, Kind, Span, Tracing

_KINDS = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}
#: Seconds that a process which ends waits for a collector.
_LAST_FLUSH = 3.0


class OtelTracing(Tracing):
    """Whether a trace is recorded is decided where it begins (OTEL_TRACES_SAMPLER): all, unless
    the context that came in says otherwise."""

    def __init__(self, endpoint: str | None, process: str, instance_id: str) -> None:
        """``endpoint``: such as http://collector:4317, https:// for TLS; None: by OTEL_*."""
        named = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", f"baton-{process}"),
            "service.instance.id": instance_id,
        }
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("baton")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self,
        name: str,
        traceparent: str,
        kind: Kind = "server",
        *,
        at: float | None = None,
        attributes: Attributes = NOTHING,
    ) -> Span:
        above = self._propagator.extract({"traceparent": traceparent}, Context())
        offset = time.time_ns() - time.monotonic_ns()
        return OtelSpan(self._tracer, offset, above, name, kind, at, attributes)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._provider.force_flush(round(_LAST_FLUSH * 1000))
        self._provider.shutdown()


class OtelSpan(Span):
    """One of a process's part of a trace; all of that part have the same idea of the time."""

    __slots__ = ("_offset", "_span", "_tracer", "recording")

    def __init__(
        self,
        tracer: trace.Tracer,
        offset: int,
        above: Context,
        name: str,
        kind: Kind,
        at: float | None,
        attributes: Attributes,
    ) -> None:
        """``offset``: nanoseconds from ``time.monotonic`` to Unix time."""
        self._tracer = tracer
        self._offset = offset
        self._span = tracer.start_span(
            name, above, _KINDS[kind], attributes, start_time=self._unix(at)
        )
        self.recording = self._span.is_recording()
        context = self._span.get_span_context()
        super().__init__(
            f"00-{trace.format_trace_id(context.trace_id)}-"
            f"{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"
        )

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        *,
        at: float | None = None,
        attributes: Attributes = NOTHING,
    ) -> Span:
        if not self.recording:
            return self
        above = trace.set_span_in_context(self._span, Context())
        return OtelSpan(self._tracer, self._offset, above, name, kind, at, attributes)

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, at: float | None = None) -> None:
        self._span.add_event(name, timestamp=self._unix(at))

    def end(self, error: BaseException | None = None, at: float | None = None) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("baton.cancelled", True)
        elif error is not None:
            kind = error.code if isinstance(error, BatonError) else type(error).__name__
            self._span.set_attribute("error.type", kind)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end(self._unix(at))

    def past(self, name: str, start: float, end: float, attributes: Attributes = NOTHING) -> None:
        if self.recording:
            self.child(name, at=start, attributes=attributes).end(at=max(start, end))

    def _unix(self, at: float | None) -> int:
        return self._offset + (time.monotonic_ns() if at is None else round(at * 1e9))
