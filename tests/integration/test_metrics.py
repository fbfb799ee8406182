"""What processes tell Prometheus, against ``docs/metrics.md``, the table of all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from baton.metrics.process import LinkMetrics, process_registry
from baton.tls.links import PLAIN
from gateway.relay.admin import Metrics as RelayMetrics
from tests.fakes import FakeWorker, eventually, write_checkpoint
from tests.gateways import serving
from tests.telemetry import Told, table
from tests.workers import Worker, cluster, generation, prompt, session


class Scraped:
    """What registries of the kinds of processes had to tell."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.samples: dict[str, float] = {}

    def take(self, process: str, families: Iterable[Metric]) -> None:
        for family in families:
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = frozenset(
                label for sample in family.samples for label in sample.labels if label != "le"
            )
            before = self.told.get(name, Told(family.type, labels, frozenset(), ""))
            self.told[name] = Told(
                {"info": "gauge"}.get(family.type, family.type),
                before.labels | labels,
                before.processes | {process},
                family.documentation,
            )
            for sample in family.samples:
                self.samples[sample.name] = self.samples.get(sample.name, 0.0) + sample.value


def _links(process: str) -> Iterator[Metric]:
    """Of a process with TLS that has refused somebody."""
    links = SimpleNamespace(encrypted=True, refused={"wrong_id": 1}, expires=1e9)
    return LinkMetrics(cast(Any, links)).collect()


async def _worked(scraped: Scraped) -> None:
    """Two workers after a hand-off."""
    async with cluster(local_prefill_queue=0) as c, session(c.decode[0]) as s:
        await s.submit(generation(prompt(21)), c.prefill[0]).finished()
        for worker in c.workers:
            registry: CollectorRegistry = worker.runtime.metrics.registry
            scraped.take("worker", registry.collect())


async def _served(scraped: Scraped, checkpoint: Path) -> None:
    """A gateway that has seen one of everything."""
    worker = FakeWorker(local_prefill=True)
    async with serving(checkpoint, [worker]) as gateway:
        await gateway.complete()
        await gateway.complete(temperature=-1)
        metrics = gateway.service.metrics
        metrics.resumes.labels("accepted")
        metrics.role_changes.labels("decode")
        scraped.take("gateway", metrics.registry.collect())


async def test_the_table_has_every_metric_as_it_is_told(tmp_path: Path) -> None:
    scraped = Scraped()
    await _worked(scraped)
    await _served(scraped, write_checkpoint(tmp_path / "toy"))
    scraped.take("relay", RelayMetrics(process_registry("relay", PLAIN)).registry.collect())
    for process in ("gateway", "relay", "worker"):
        scraped.take(process, _links(process))
    documented, told = table(), scraped.told
    assert documented.keys() == told.keys()
    # Told of pairs of workers, which the gateway's fake has none of.
    unlabelled = {"baton_kv_pairs", "baton_kv_downgraded_pairs"}
    for name, row in documented.items():
        assert row.type == told[name].type, name
        assert row.processes == told[name].processes, name
        assert row.meaning == told[name].meaning, name
        if name not in unlabelled:
            assert row.labels == told[name].labels, name
    for sample in (
        "baton_time_to_first_token_seconds_count",
        "baton_inter_token_latency_seconds_count",
        "baton_e2e_request_latency_seconds_count",
        "baton_request_queue_seconds_count",
        "baton_prompt_tokens_total",
        "baton_generation_tokens_total",
        "baton_engine_step_seconds_count",
        "baton_batch_size_count",
        "baton_prefill_seconds_count",
        "baton_kv_transfer_seconds_count",
        "baton_kv_transfer_bytes_total",
    ):
        assert scraped.samples[sample] > 0, sample


async def test_a_worker_answers_scrapes_while_it_lives() -> None:
    async with cluster(prefill=0, decode=1, metrics_port=0, local_prefill=True) as c:
        worker: Worker = c.decode[0]
        url = f"http://{worker.runtime.metrics_address}/metrics"
        async with session(worker) as s:
            await s.submit(generation(prompt(21))).finished()
        async with httpx.AsyncClient(timeout=20) as client:
            text = (await client.get(url)).text
        families = {f.name: f for f in text_string_to_metric_families(text)}
        blocks = {s.labels["state"]: s.value for s in families["baton_kv_blocks"].samples}
        assert sum(blocks.values()) == 64 and blocks["cached"] == 7
        (info,) = families["baton_worker_info"].samples
        assert info.labels == {"role": "decode", "model": "mock"}
        assert families["baton_prefill_queue_seconds"].samples


async def test_a_lost_worker_is_counted_and_one_that_left_is_not(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy")
    stays, leaves, dies = FakeWorker(), FakeWorker(draining=True), FakeWorker()
    async with serving(checkpoint, [stays, leaves, dies]) as gateway:

        def up() -> list[float]:
            return [
                gateway.metric("baton_worker_up", worker=w.address, role="decode")
                for w in (stays, leaves, dies)
            ]

        assert up() == [1, 1, 1]
        assert gateway.metric("baton_workers", role="decode", health="healthy") == 3
        await leaves.kill()
        await dies.kill()
        await eventually(lambda: up() == [1, 0, 0])
        await eventually(lambda: gateway.metric("baton_workers", role="decode", health="out") == 2)
        assert gateway.metric("baton_workers_lost_total", role="decode") == 1
