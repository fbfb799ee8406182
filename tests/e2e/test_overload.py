"""Four times as much is asked as can be served; ``python -m bench.overload`` measures at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.overload import CAPACITY, DEADLINE, FLAGS, PROMPT, Phase, offer, resident
from tests.e2e.cluster import MODEL, cluster

SECONDS = 6.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("blocks", "kept"),
    [
        pytest.param(256, 0.6, id="compute is short"),
        pytest.param(40, 0.5, id="memory is short", marks=pytest.mark.slow),  # of ten prompts
    ],
)
async def test_overload_costs_no_goodput_and_the_rest_is_refused_at_once(
    tiny_llama: Path, blocks: int, kept: float
) -> None:
    with cluster(tiny_llama, *FLAGS, "--num-blocks", str(blocks)) as running:
        admin = running.cluster_url.removesuffix("/cluster")
        pid = running.processes["gateway"].pid

        async def load(factor: float, seed: int) -> Phase:
            return await offer(running.url, admin, MODEL, factor * CAPACITY, SECONDS, seed)

        await load(0.25, 0)
        saturated = await load(1.25, 1)
        overloaded = await load(4, 2)
        before = resident(pid)
        again = await load(4, 3)
        grown = resident(pid) - before
    for phase in (overloaded, again):
        # Shares, not times: the machine may be busy. What a quiet one does is in LOG.md.
        assert set(phase.statuses) <= {200, 429, 504}
        assert phase.goodput > kept * saturated.goodput
        assert phase.statuses[429] > phase.statuses[504]
        assert phase.refusals[0] < DEADLINE / 2
        assert phase.queued < 2 * DEADLINE * CAPACITY * PROMPT
    assert grown < 8 * 2**20
