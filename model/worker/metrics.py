"""What a worker counts for Prometheus: its engine's steps, queue and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.identity import Role, named
from baton.metrics import buckets
from baton.v1 import worker_pb2
from model.engine.engine import Load
from model.engine.events import SequenceTimings


class WorkerMetrics:
    """The worker's instruments. The engine's thread counts steps, the event loop the rest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._steps = Histogram(
            "baton_engine_step_seconds",
            "Engine steps, from plan to commit.",
            buckets=buckets.STEP,
            registry=registry,
        )
        self._batch = Histogram(
            "baton_batch_size",
            "Sequences that decoded in a step, of steps in which any did.",
            buckets=buckets.BATCH,
            registry=registry,
        )
        computed = Counter(
            "baton_computed_tokens",
            "Tokens computed by the engine: of prompts (prefill), or one for each decoding "
            "sequence (decode); replays included.",
            ["kind"],
            registry=registry,
        )
        self._prefilled, self._decoded = computed.labels("prefill"), computed.labels("decode")
        self._queued = Histogram(
            "baton_prefill_queue_seconds",
            "Prompts computed here: from reserving their blocks to their first step.",
            buckets=buckets.QUEUE,
            registry=registry,
        )
        self._prefill = Histogram(
            "baton_prefill_seconds",
            "Prompts computed here: time in the steps that computed them.",
            buckets=buckets.PREFILL,
            registry=registry,
        )

    def step(self, seconds: float, prompt_tokens: int, decodes: int) -> None:
        """A step took so long, for so many tokens of prompts and so many decoding sequences."""
        self._steps.observe(seconds)
        self._prefilled.inc(prompt_tokens)
        if decodes:
            self._batch.observe(decodes)
            self._decoded.inc(decodes)

    def prefilled(self, timings: SequenceTimings) -> None:
        """A prompt was computed; as its first token came with them."""
        self._queued.observe(timings.queued_s)
        self._prefill.observe(timings.prefill_s)

    def watch(
        self,
        load: Callable[[], Load],
        roles: Callable[[], frozenset[Role]],
        model: str,
        decisions: Callable[[], Iterable[worker_pb2.PrefillDecision]],
    ) -> None:
        """Tell with every scrape what these say then, on the scrape's thread."""
        self.registry.register(_Engine(load))
        self.registry.register(_Duties(roles, model, decisions))


class _Engine(Collector):
    """The engine's own counts."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        blocks = load.blocks
        yield GaugeMetricFamily(
            "baton_compute_queue_tokens",
            "Prompt tokens waiting for compute on this worker, less those cached.",
            value=load.queued_tokens,
        )
        yield _by(
            "state",
            "baton_sequences",
            "Sequences in the batch (running), and waiting for compute or for KV.",
            {"running": load.running, "waiting": load.waiting},
        )
        yield _by(
            "state",
            "baton_kv_blocks",
            "KV blocks by state; they add up to the pool.",
            {
                "free": blocks.free,
                "cached": blocks.cached,
                "owned": blocks.owned,
                "quarantined": blocks.quarantined,
            },
        )
        yield GaugeMetricFamily("baton_draining", "1: it takes no new work.", value=load.draining)
        yield GaugeMetricFamily(
            "baton_engine_failing", "1: its steps keep failing.", value=load.failed
        )
        yield CounterMetricFamily(
            "baton_engine_step_failures",
            "Engine steps that failed; every sequence in one ends.",
            value=load.failed_steps,
        )
        yield CounterMetricFamily(
            "baton_preemptions",
            "Sequences that gave their KV blocks to older ones, and go on as another attempt.",
            value=load.totals.preemptions,
        )


class _Duties(Collector):
    """What the worker does now, and where the prompts of its attempts were computed."""

    def __init__(
        self,
        roles: Callable[[], frozenset[Role]],
        model: str,
        decisions: Callable[[], Iterable[worker_pb2.PrefillDecision]],
    ) -> None:
        self._roles = roles
        self._model = model
        self._decisions = decisions

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "baton_worker_info",
            "Always 1: what the worker does (prefill, decode or both), and the model it serves.",
            labels=["role", "model"],
        )
        info.add_metric([named(self._roles()), self._model], 1)
        yield info
        decided = CounterMetricFamily(
            "baton_prefill_decisions",
            "Attempts of a decode worker, by where their prompts were computed (here, or there: on "
            "a prefill worker) and why.",
            labels=["where", "reason"],
        )
        for decision in self._decisions():
            where = "here" if decision.local else "there"
            decided.add_metric([where, decision.reason], decision.count)
        yield decided


def _by(label: str, name: str, documentation: str, values: dict[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        gauge.add_metric([value], count)
    return gauge
