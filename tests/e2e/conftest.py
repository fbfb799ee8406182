"""Clusters that several tests share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import DEMO, Cluster, cluster


@pytest.fixture(scope="session")
def _demo_cluster() -> Iterator[Cluster]:
    with cluster(DEMO, "--tool-format", "hermes") as running:
        yield running


@pytest.fixture
def demo(_demo_cluster: Cluster) -> Iterator[Cluster]:
    """The demo model behind one prefill and one decode worker; leave it as it was."""
    yield _demo_cluster
    _demo_cluster.check_integrity()
