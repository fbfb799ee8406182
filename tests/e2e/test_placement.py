"""Prefix-aware placement over real processes: a second turn goes where the first one's KV is."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx

from tests.e2e import client
from tests.e2e.cluster import DEMO, Cluster, cluster, until
from tests.e2e.mocked import compatibility, job

MOCK = ("--mock", "--prefill", "2", "--decode", "2", "--placement", "prefix")
#: Conversations.
LEAST, MOST = 6, 50
LENGTH = 160
ASK = {"x-baton-debug": "placement"}


def cached_blocks(running: Cluster) -> int:
    """Of all workers, as far as the gateway has heard, which then knows what they hold, too."""
    return sum(load["blocks_cached"] for load in running.loads().values())


def test_a_second_turn_goes_where_its_prefix_is() -> None:
    rng = random.Random(0)
    with cluster(DEMO, *MOCK) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        layout = compatibility(running)

        def turn(prompt: tuple[int, ...]) -> tuple[dict[str, Any], list[int], int]:
            """Where it was placed, what came, and how much was cached."""
            answer = http.post("/v1/completions", json=client.body(prompt, 8), headers=ASK)
            body = answer.json()
            cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            said = json.loads(answer.headers["x-baton-placement"])
            return said, body["choices"][0]["token_ids"], cached

        went = []
        while len(went) < LEAST or len({said["prefill"]["worker"] for said, _ in went}) < 2:
            assert len(went) < MOST, "ties break at random, so both get some"
            one = job(rng, LENGTH, 8)
            said, tokens, _ = turn(one.prompt)
            assert tokens == one.expected(layout)
            went.append((said, (*one.prompt, *tokens)))
        # Of each, on the worker that prefilled and the one that decoded.
        blocks = 2 * len(went) * (LENGTH // layout.block_size)
        until(lambda: cached_blocks(running) >= blocks, 30.0, "the gateway knows of all blocks")
        for said, so_far in went:
            again, _, cached = turn((*so_far, *job(rng, 30, 8).prompt))
            assert again["prefill"]["worker"] == said["prefill"]["worker"]
            assert again["decode"]["worker"] == said["decode"]["worker"]
            assert again["prefill"]["best"][0]["cached"] == LENGTH
            assert cached >= LENGTH
