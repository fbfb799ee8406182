"""The fleet as this gateway sees it when somebody asks: gauges, so that nothing stays of workers
that have left. What workers count themselves is in their own ``/metrics``."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.identity import Role, named
from baton.metrics.hand_offs import transport_label
from gateway.fleet import Health
from gateway.registry import Member

_UP = frozenset({Health.HEALTHY, Health.SUSPECT})


class FleetMetrics(Collector):
    """Reads members, changes none."""

    def __init__(self, members: Callable[[], Sequence[Member]]) -> None:
        self._members = members
        #: Seen since this gateway started: when the last worker of a role is gone, that is told.
        self._roles = {named(frozenset({Role.DECODE}))}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        members = self._members()
        standing = Tally((role_of(member), member.health) for member in members)
        self._roles |= {role for role, _ in standing}
        counts = GaugeMetricFamily(
            "baton_workers",
            "Workers by what they do and how they stand; suspect ones still get work.",
            labels=["role", "health"],
        )
        for role in sorted(self._roles):
            for health in Health:
                counts.add_metric([role, health.value], standing[role, health])
        yield counts
        up = GaugeMetricFamily(
            "baton_worker_up",
            "1: it may get work; of every member, gone once it has left the membership.",
            labels=["worker", "role"],
        )
        for member in members:
            up.add_metric([member.address, role_of(member)], member.health in _UP)
        yield up
        yield from _pairs(members)


def role_of(member: Member) -> str:
    """prefill, decode, both or, before it has said so, unknown."""
    worker = member.worker
    roles = member.entry.roles if worker is None else worker.report.roles
    return role_label(roles)


def role_label(roles: frozenset[Role]) -> str:
    return named(roles) if roles else "unknown"


def _pairs(members: Iterable[Member]) -> Iterator[GaugeMetricFamily]:
    """How KV is handed over."""
    workers = [m.worker for m in members if m.worker is not None and m.health in _UP]
    pairings = [pairing for worker in workers for pairing in worker.report.kv_pairings]
    yield _gauge(
        "baton_kv_pairs",
        "Pairs of workers that hand KV over, by transport and whether blocks have checksums.",
        ["transport", "checksums"],
        ((transport_label(p.transport), "on" if p.checksums else "off") for p in pairings),
    )
    yield _gauge(
        "baton_kv_downgraded_pairs",
        "Of these, those that passed a better transport over; /cluster says why.",
        ["transport", "passed_over"],
        (
            (transport_label(p.transport), transport_label(line.partition(":")[0]))
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
