"""What this process's gRPC server refused, as it is when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from baton.tls.links import Links


class LinkMetrics(Collector):
    """One counter; workers tell theirs in their status."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def collect(self) -> Iterator[CounterMetricFamily]:
        refused = CounterMetricFamily(
            "baton_tls_refused",
            "Peers and calls refused for their certificate, by reason.",
            labels=["reason"],
        )
        for reason, count in self._links.refused.items():
            refused.add_metric([reason], count)
        yield refused
