"""KV hand-offs, as the decode worker that reads them counts them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from baton.metrics import buckets

#: Of a pair that has no transport in common.
_NONE = "none"
_TRANSPORTS = ("grpc", "shm", "nixl", "relay", _NONE)


def transport_label(name: str) -> str:
    """Labels stay few, whatever a peer says."""
    name = name or _NONE
    return name if name in _TRANSPORTS else "other"


class HandOffMetrics:
    """What has come, by transport."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "baton_kv_handoffs",
            "KV hand-offs by outcome: complete, or failed through the fault of the pair or of the "
            "network between.",
            ["transport", "outcome"],
            registry=registry,
        )
        self._bytes = Counter(
            "baton_kv_transfer_bytes",
            "KV payload received, failed hand-offs included.",
            ["transport"],
            registry=registry,
        )
        self._seconds = Histogram(
            "baton_kv_transfer_seconds",
            "From when KV was first there to be read to its last block being written.",
            ["transport"],
            buckets=buckets.TRANSFER,
            registry=registry,
        )
        self._tail = Histogram(
            "baton_kv_transfer_tail_seconds",
            "Of that, what came after the first token: not hidden behind the computing.",
            ["transport"],
            buckets=buckets.TRANSFER,
            registry=registry,
        )
        # From 0 on, so that the first failure is seen as a rise.
        for transport in _TRANSPORTS:
            self._ended.labels(transport, "complete")
            self._ended.labels(transport, "failed")

    def received(self, transport: str, nbytes: int) -> None:
        self._bytes.labels(transport_label(transport)).inc(nbytes)

    def complete(self, transport: str, seconds: float, tail: float) -> None:
        """All of a hand-off has come, in so many ``seconds``, ``tail`` of them not hidden."""
        label = transport_label(transport)
        self._ended.labels(label, "complete").inc()
        self._seconds.labels(label).observe(seconds)
        self._tail.labels(label).observe(tail)

    def failed(self, transport: str) -> None:
        self._ended.labels(transport_label(transport), "failed").inc()
