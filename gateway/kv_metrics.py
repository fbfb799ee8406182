"""What the gateway counts of the hand-offs between its workers, from what decode workers report."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.fleet import KvPairing, Report, Worker

#: Of a pair that has no transport in common.
_NONE = "none"

#: Labels stay few whatever a worker says.
_TRANSPORTS = frozenset({"grpc", "shm", "nixl", "relay", _NONE})


class KvCounters:
    """What has come since this gateway started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handoffs = Counter(
            "baton_kv_handoffs",
            "KV hand-offs, by transport and outcome: complete, or failed through the fault of the "
            "pair or of the network between.",
            ["transport", "outcome"],
            registry=registry,
        )
        self._bytes = Counter(
            "baton_kv_bytes",
            "KV payload that decode workers received, by transport.",
            ["transport"],
            registry=registry,
        )

    def count(self, before: Report, now: Report) -> None:
        """Take in what happened between two reports of one worker."""
        known = {pairing.instance_id: pairing for pairing in before.kv_pairings}
        for pairing in now.kv_pairings:
            last = known.get(pairing.instance_id)
            if last is None or last.bytes > pairing.bytes:  # the worker counts from 0
                last = KvPairing()
            transport = _label(pairing.transport)
            complete, failed = pairing.complete - last.complete, pairing.failed - last.failed
            self._handoffs.labels(transport, "complete").inc(max(0, complete))
            self._handoffs.labels(transport, "failed").inc(max(0, failed))
            self._bytes.labels(transport).inc(pairing.bytes - last.bytes)


class KvPairs(Collector):
    """What has been agreed on, as it is when somebody asks."""

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        """``workers``: those that may get work."""
        self._workers = workers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        pairings = [p for worker in self._workers() for p in worker.report.kv_pairings]
        yield _gauge(
            "baton_kv_pairs",
            "Pairs of workers that hand KV over, by transport and whether blocks have checksums.",
            ["transport", "checksums"],
            ((_label(p.transport), "on" if p.checksums else "off") for p in pairings),
        )
        yield _gauge(
            "baton_kv_downgraded_pairs",
            "Of these, those that passed a better transport over; /cluster says why.",
            ["transport", "passed_over"],
            (
                (_label(p.transport), _label(line.partition(":")[0]))
                for p in pairings
                for line in p.downgrades
            ),
        )


def _gauge(
    name: str, documentation: str, labels: Sequence[str], found: Iterable[Sequence[str]]
) -> GaugeMetricFamily:
    """How often each combination of labels was found."""
    gauge = GaugeMetricFamily(name, documentation, labels=labels)
    for values, count in Tally(tuple(values) for values in found).items():
        gauge.add_metric(values, count)
    return gauge


def _label(transport: str) -> str:
    transport = transport or _NONE
    return transport if transport in _TRANSPORTS else "other"
