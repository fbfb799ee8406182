"""Spans of what a request goes through, by OpenTelemetry or, as is usual, not at all.

Code that is traced holds a ``Span`` and need not know which: the one here belongs to no trace, does
nothing, and hands on the W3C context that came with the request. ``--otlp-endpoint``, or the
standard variable ``OTEL_EXPORTER_OTLP_ENDPOINT``, puts those of ``baton/otel.py`` in its place;
until then nothing of OpenTelemetry is imported. Sampling, headers, certificates, resource
attributes and batches are set by the other standard ``OTEL_*`` variables.

Times are seconds of ``time.monotonic``, as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

Kind = Literal["server", "client", "internal"]
Value: TypeAlias = str | bool | int | float | list[int] | list[float]
Attributes: TypeAlias = Mapping[str, Value]

NOTHING: Attributes = {}
#: What turns tracing on where the setting does not.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TracingUnavailable(ValueError):
    """Traces were asked for, and cannot be had."""


class Span:
    """Part of a trace, until ``end``. This one is of none."""

    __slots__ = ("traceparent",)

    recording = False  #: somebody will see it

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent  #: W3C context for whoever is called within it

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        *,
        at: float | None = None,
        attributes: Attributes = NOTHING,
    ) -> Span:
        """A span within this one, from ``at``, now by default."""
        return self

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""

    def event(self, name: str, at: float | None = None) -> None:
        """Something happened at a point in time."""

    def end(self, error: BaseException | None = None, at: float | None = None) -> None:
        """It is over; with ``error`` it failed, unless that is a cancellation. Once."""

    def past(self, name: str, start: float, end: float, attributes: Attributes = NOTHING) -> None:
        """A span within this one that is over already."""

    @contextmanager
    def during(self) -> Iterator[Span]:
        """Ends with the body, by what the body raises."""
        try:
            yield self
        except BaseException as error:
            self.end(error)
            raise
        self.end()


class Tracing:
    """Begins the spans of one process. This one begins none."""

    def begin(
        self,
        name: str,
        traceparent: str,
        kind: Kind = "server",
        *,
        at: float | None = None,
        attributes: Attributes = NOTHING,
    ) -> Span:
        """The part of a trace that this process has, below who called it; a trace of its own where
        ``traceparent`` is empty."""
        return Span(traceparent)

    async def close(self) -> None:
        """Send what has ended. Waits a few seconds at most."""


def tracing(endpoint: str | None, process: str, instance_id: str) -> Tracing:
    """What a process is told to do: spans go to ``endpoint``, or where the environment says.

    Raises TracingUnavailable without the extra ``otel``, or for a protocol that is not gRPC.
    """
    if endpoint is None and not _asked_for(os.environ):
        return Tracing()
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "grpc")
    if protocol != "grpc":
        raise TracingUnavailable(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; only 'grpc' is known"
        )
    try:
        from baton.otel import OtelTracing
    except ImportError as error:
        raise TracingUnavailable(
            f"traces need OpenTelemetry ({error}): pip install '.[otel]' in Baton's clone"
        ) from error
    return OtelTracing(endpoint, process, instance_id)


def _asked_for(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in _ENDPOINTS)
