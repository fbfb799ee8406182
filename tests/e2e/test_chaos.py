"""The chaos suite, a short one: two gateways, three prefill and three decode workers that compute
nothing; two dozen faults, each kind against each kind of process about once. ``make chaos`` is the
long one, with a model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.__main__ import DECODE, PREFILL, exposed_fleet, requests, settings, strikes
from tests.chaos.report import failures, render
from tests.chaos.run import Chaos, Demand

FAULTS, STREAMS, CLIENTS = 24, 100, 12


@pytest.mark.timeout(400)
async def test_every_stream_is_exact_and_nothing_leaks(tiny_llama: Path, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    sizes = f"--faults {FAULTS} --streams {STREAMS} --clients {CLIENTS}"
    print(f"make chaos ARGS='--mock --no-own-network --seed {seed} {sizes}'")
    up = settings(tiny_llama, mock=True, deterministic=True, transport="grpc")
    planned = strikes(seed, FAULTS, seconds=0.0)
    async with exposed_fleet(up, tmp_path) as running:
        chaos = Chaos(running, PREFILL + DECODE, planned)
        result = await chaos.run(requests(seed), Demand(STREAMS, CLIENTS), seed)
    print(render(result))
    assert failures(result) == []
    assert len(result.struck) == FAULTS and result.migrations
