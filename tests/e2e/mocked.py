"""Clusters of mock workers, whose tokens are known beforehand whatever happens on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from baton.identity import CompatibilityClass
from baton.sampling import SamplingSpec
from model.engine.mock_runner import expected_tokens
from tests.e2e import client
from tests.e2e.cluster import Cluster, get


@dataclass(frozen=True, slots=True)
class Job:
    """A greedy request to a mock cluster."""

    prompt: tuple[int, ...]
    max_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        return client.body(self.prompt, self.max_tokens)

    def expected(self, compatibility: CompatibilityClass) -> list[int]:
        spec = SamplingSpec(temperature=0.0, max_tokens=self.max_tokens, ignore_eos=True)
        return expected_tokens(self.prompt, spec, compatibility)


def job(rng: random.Random, length: int, max_tokens: int) -> Job:
    return Job(tuple(rng.randrange(256) for _ in range(length)), max_tokens)


def compatibility(running: Cluster) -> CompatibilityClass:
    """What the cluster's workers agreed on."""
    workers = get(running.cluster_url).json()["workers"]
    return CompatibilityClass(**next(w["compatibility"] for w in workers if "compatibility" in w))
