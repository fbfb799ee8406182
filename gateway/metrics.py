"""What the gateway counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from baton.errors import TABLE, BatonError, TooManyConnections
from baton.identity import ROLES
from baton.metrics import buckets


class Metrics:
    """The gateway's instruments. ``registry`` is what ``/metrics`` renders.

    What alerts look for begins at 0, so that the first of it is seen as a rise.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.tokens = TokenFlow()
        registry.register(self.tokens)
        self._count_requests(registry)
        self._time_requests(registry)
        self._count_workers(registry)

    def _count_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "baton_requests",
            "Generation requests ended, by HTTP status (of the error event, in mid-stream).",
            ["code"],
            registry=registry,
        )
        self.refusals = Counter(
            "baton_refusals",
            "Requests refused before anything of an answer was sent, by error code.",
            ["reason"],
            registry=registry,
        )
        self.refused_connections = Counter(
            "baton_refused_connections",
            "Connections closed with an error before a request on them began, by error code.",
            ["reason"],
            registry=registry,
        )
        self.resumes = Counter(
            "baton_resumes",
            "Requests to finish an answer of another gateway, by outcome: accepted or refused.",
            ["outcome"],
            registry=registry,
        )
        self.repeated = Counter(
            "baton_repeated",
            "Requests answered by what an earlier one with their Idempotency-Key got.",
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "baton_prompt_tokens",
            "Prompt tokens of requests that got their first token.",
            registry=registry,
        )
        self.prefix_hits = Counter(
            "baton_prefix_cache_hit_tokens",
            "Of these, those that nobody computed for them: they were cached.",
            registry=registry,
        )
        self.queue_tokens = Gauge(
            "baton_queue_tokens",
            "Prompt tokens of requests waiting for their first token.",
            registry=registry,
        )
        self.open_streams = Gauge(
            "baton_open_streams", "Generation requests in progress.", registry=registry
        )

    def _time_requests(self, registry: CollectorRegistry) -> None:
        self.time_to_first_token = Histogram(
            "baton_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=buckets.FIRST_TOKEN,
            registry=registry,
        )
        self.queued = Histogram(
            "baton_request_queue_seconds",
            "From a request's arrival to when it was first placed on workers.",
            buckets=buckets.QUEUE,
            registry=registry,
        )
        self.request_latency = Histogram(
            "baton_e2e_request_latency_seconds",
            "From a request's arrival to its last token, of those that were finished.",
            buckets=buckets.REQUEST,
            registry=registry,
        )

    def _count_workers(self, registry: CollectorRegistry) -> None:
        self.migrations = Counter(
            "baton_migrations",
            "Attempts placed again, by the error code that ended the one before.",
            ["reason"],
            registry=registry,
        )
        self.stale_tokens = Counter(
            "baton_stale_tokens",
            "Tokens dropped because they were of an ended attempt or out of order.",
            registry=registry,
        )
        self.role_changes = Counter(
            "baton_role_changes",
            "Workers told by --auto-roles to change, by what they do since.",
            ["role"],
            registry=registry,
        )
        self.workers_lost = Counter(
            "baton_workers_lost",
            "Workers that went, hung or failed without draining first, by what they did.",
            ["role"],
            registry=registry,
        )
        self.refused_connections.labels(TooManyConnections.code)
        for code, error in TABLE.items():
            if error.retryable:
                self.migrations.labels(code)
        for role in ROLES:
            self.workers_lost.labels(role)

    def refused_connection(self, error: BatonError) -> None:
        """A connection was answered with ``error`` and closed."""
        self.refused_connections.labels(error.code).inc()


class TokenFlow(Collector):
    """What is counted with every token, all on one thread.

    prometheus_client's own take a lock each and go through the buckets one by one: 0.9 us a token
    on a machine where these take 0.15, and a token costs the gateway some 50.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._gaps = [0] * (len(buckets.BETWEEN_TOKENS) + 1)

    def first(self, tokens: int) -> None:
        """A choice has its first so many."""
        self._tokens += tokens

    def more(self, tokens: int, seconds: float) -> None:
        """So many came, so long after those before."""
        self._tokens += tokens
        self._seconds += seconds
        self._gaps[bisect_left(buckets.BETWEEN_TOKENS, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        borders = [*map(str, buckets.BETWEEN_TOKENS), "+Inf"]
        yield HistogramMetricFamily(
            "baton_inter_token_latency_seconds",
            "Between two deliveries of tokens to one request.",
            buckets=list(zip(borders, accumulate(self._gaps), strict=True)),
            sum_value=self._seconds,
        )
        yield CounterMetricFamily(
            "baton_generation_tokens",
            "Tokens generated, each counted once however often its request was placed.",
            value=self._tokens,
        )
