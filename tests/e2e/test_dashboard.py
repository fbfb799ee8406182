"""Every query of the dashboard has data, from Prometheus itself beside a cluster under load."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from baton.cli import ports
from tests.dashboard import queries
from tests.e2e import client
from tests.e2e.cluster import Cluster, cluster

#: A rate needs some scrapes in it, one a second.
VALUES = {"job": "baton", "instance": ".*", "__rate_interval": "20s"}
PATIENCE = 90.0


@contextmanager
def prometheus(targets: list[str], folder: Path) -> Iterator[str]:
    """Scrapes ``targets`` every second; where it answers queries. Skips where it is missing."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus")
    scrape = {"job_name": "baton", "static_configs": [{"targets": targets}]}
    config = folder / "prometheus.yml"  # JSON is YAML
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    listening = f"127.0.0.1:{next(ports.free('127.0.0.1'))}"
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [
                *(binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
                f"--web.listen-address={listening}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{listening}/api/v1/query"
    finally:
        child.terminate()
        child.wait(30)


def targets(running: Cluster) -> list[str]:
    """host:port of every process's metrics."""
    workers = re.findall(r"\bmetrics=(\S+:\d+)", re.sub(r"\x1b\[[0-9;]*m", "", running.output))
    return [urlsplit(running.cluster_url).netloc, *workers]


async def without_data(http: httpx.AsyncClient, url: str) -> dict[str, str]:
    """Queries that return nothing, or an error."""
    missing = {}
    for title, query in queries(VALUES).items():
        try:
            answer = (await http.get(url, params={"query": query})).json()
        except httpx.TransportError as error:  # it starts
            return {"all": repr(error)}
        if answer["status"] != "success" or not answer["data"]["result"]:
            missing[title] = answer.get("error", query)
    return missing


async def work(http: httpx.AsyncClient, number: int) -> None:
    """A request after the other, all of one prefix; now and then one that is refused."""
    prompt = [number, *range(100)]
    for length in range(1_000_000):
        answer = await http.post("/v1/completions", json=client.body(prompt, 4 + length % 8))
        assert answer.status_code == 200
        await http.post("/v1/completions", json=client.body(prompt, 0))


@pytest.mark.timeout(300)
async def test_every_query_of_the_dashboard_has_data(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ("--mock", "--num-blocks", "256", "--metrics-port", "0")
    with cluster(tiny_llama, *flags) as running:
        assert len(targets(running)) == 3
        with prometheus(targets(running), tmp_path) as url:
            async with client.connect(running.url) as http, httpx.AsyncClient(timeout=60) as asking:
                working = [asyncio.create_task(work(http, number)) for number in range(3)]
                try:
                    async with asyncio.timeout(PATIENCE):
                        while missing := await without_data(asking, url):
                            assert not any(task.done() for task in working)
                            await asyncio.sleep(1)
                except TimeoutError:
                    pytest.fail(f"no data: {missing}")
                finally:
                    for task in working:
                        task.cancel()
                    await asyncio.gather(*working, return_exceptions=True)
