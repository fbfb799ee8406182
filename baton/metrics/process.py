"""What every process tells of itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Info,
    Metric,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.identity import PROTOCOL
from baton.metrics.usage import Usage
from baton.tls.gate import REASONS
from baton.tls.links import Links


def process_registry(process: str, links: Links) -> CollectorRegistry:
    """A registry for this ``process`` ("gateway", "relay" or "worker"), with who it is, its use of
    the machine (``process_*``), and its connections."""
    # They are a series more for each, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    build = Info("baton_build", "What runs here.", registry=registry)
    build.info({"process": process, "version": version("baton-serve"), "protocol": str(PROTOCOL)})
    registry.register(Usage())
    registry.register(LinkMetrics(links))
    return registry


class LinkMetrics(Collector):
    """This process's gRPC connections, as they are when somebody asks."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def collect(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "baton_tls_refused",
            "Peers and calls that this process's gRPC server refused for their certificate.",
            labels=["reason"],
        )
        if self._links.encrypted:
            for reason in REASONS:
                refused.add_metric([reason], self._links.refused.get(reason, 0))
        yield refused
        if (expires := self._links.expires) is not None:
            yield GaugeMetricFamily(
                "baton_tls_certificate_expiry_timestamp_seconds",
                "When this process's certificate expires, Unix time.",
                value=expires,
            )
