"""What the gateway counts, on a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """The gateway's instruments. ``registry`` is what ``/metrics`` renders."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
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
        self.time_to_first_token = Histogram(
            "baton_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "baton_inter_token_latency_seconds",
            "Between two deliveries of tokens to one request.",
            buckets=_BETWEEN_TOKENS,
            registry=registry,
        )
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
        self.role_changes = Counter(
            "baton_role_changes",
            "Workers told by --auto-roles to change, by what they do since.",
            ["role"],
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
