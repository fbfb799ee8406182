"""Faults by the hundred against real processes, over every KV transport.

    FAULTS=100 SEED=1 python -m pytest tests/faults -m slow -s [-k grpc]

Two prefill and two decode workers with the demo model serve eight streams at a time while, at
random moments, workers are killed and stopped, and connections cut, stalled, slowed to 1 MB/s and
tampered with. Every stream must end with exactly the tokens of an undisturbed run, in time; when
all is quiet, every worker's books must balance; and what the workers that live through all of it
hold of memory, descriptors and shared memory must not add up.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from baton.settings import UpSettings
from tests.cases import cases
from tests.e2e.cluster import DEMO, MODEL
from tests.faults.campaign import OWN, Campaign, Tally
from tests.fleets import Fleet, Resources, fleet

FAULTS = int(os.environ.get("FAULTS", "100"))
SEED = int(os.environ.get("SEED", str(time.time_ns() % 10**6)))
PREFILL, DECODE = 2, 2
#: More prompts than the caches hold: 24 of about 40 blocks each, twice 300 blocks.
CASES, BLOCKS = 24, 300
#: They live through every fault, none of which kills them.
ELDERS = ("p0", "d0", "g0")
#: Faults after which a process has met everything once, and should grow no more.
WARM = 20
GROWTH_MB, GROWTH_DESCRIPTORS = 40.0, 8


def settings(transport: str) -> UpSettings:
    return UpSettings(
        model=str(DEMO),
        served_model_name=MODEL,
        prefill=PREFILL,
        decode=DECODE,
        threads=1,
        deterministic=True,
        num_blocks=BLOCKS,
        chunk_tokens=64,
        local_prefill_queue=0,  # every prompt is handed over
        kv_transports=list(dict.fromkeys((transport, "grpc"))),
        retry_budget=60.0,
        queue_timeout=60.0,
        kv_checksums="off" if transport == "nixl" else "on",  # flipped bits show by them alone
    )


class Watch:
    """What the elders have, from time to time."""

    def __init__(self, running: Fleet) -> None:
        self._fleet = running
        self.seen: list[tuple[int, dict[str, Resources]]] = []

    async def look(self, faults: int) -> None:
        self.seen.append((faults, {name: self._fleet.resources(name) for name in ELDERS}))
        print(f"{faults:4} faults: {self.seen[-1][1]}", flush=True)

    def require_bounded(self) -> None:
        """Nothing has grown since all were warm, beyond noise."""
        _, first = self.seen[0]
        _, warm = next((seen for seen in self.seen if seen[0] >= WARM), self.seen[-1])
        _, last = self.seen[-1]
        for name in ELDERS:
            assert last[name].resident_mb <= warm[name].resident_mb + GROWTH_MB, name
            assert last[name].descriptors <= first[name].descriptors + GROWTH_DESCRIPTORS, name
            assert last[name].rings <= max(PREFILL, DECODE), name


@pytest.mark.slow
@pytest.mark.timeout(300 + 20 * FAULTS)
@pytest.mark.parametrize("transport", OWN)
async def test_campaign(transport: str, tmp_path: Path) -> None:
    if transport == "nixl":
        pytest.importorskip("nixl")
    print(f"\n{transport}: {FAULTS} faults, SEED={SEED}, log {tmp_path / 'fleet.log'}")
    work = cases(random.Random(SEED), CASES)
    async with fleet(settings(transport), tmp_path / "fleet.log") as running:
        campaign, watch = Campaign(running, transport, work, SEED), Watch(running)
        try:
            await campaign.run(FAULTS, PREFILL + DECODE, watch.look)
            watch.require_bounded()
        finally:
            print(summary(transport, running, campaign.tally))
        assert transport in running.journal.transports


def summary(transport: str, running: Fleet, tally: Tally) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.faults.items()))
    journal, (gap, when) = running.journal, tally.longest_gap
    return "\n".join(
        [
            *tally.log[-10:],
            f"{transport}: SEED={SEED}, {tally.faults.total()} faults: {kinds}",
            f"  {tally.streams} streams exact, {tally.refused} refused at first; the longest took "
            f"{tally.longest_stream:.1f} s; the longest gap in one was {gap:.1f} s, until {when}",
            f"  {journal.deaths} restarts; pairs over {dict(Counter(journal.transports))}",
        ]
    )
