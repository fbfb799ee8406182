"""How long streams wait when a worker is killed, stopped, cut off or loses its connections: within
the goals and what a busy machine adds; with the very tokens, and books that balance after it."""

from __future__ import annotations

import random

import pytest

from bench.records import Record
from bench.recovery import faults
from bench.recovery.__main__ import settings
from bench.recovery.faults import Load
from bench.recovery.fleet import fleet

#: Seconds: processes start beside these, and a core is shared by many.
SPARE = 5.0
DECODING = Load(streams=8, prompt=256, output=150, prefill_token_s=200e-6)
PREFILLING = Load(streams=1, prompt=1500, output=2, prefill_token_s=200e-6)


def require(found: list[Record]) -> None:
    values = {record.name: record.value for record in found}
    print(found[0].params, values)
    assert values["longest"] <= values["goal"] + SPARE, found


@pytest.mark.timeout(400)
async def test_waits_are_bounded() -> None:
    rng = random.Random(7)
    async with fleet(settings(2)) as running:
        await running.until_well()
        for fault in ("kill", "reset", "stop", "partition"):
            require(await faults.decode(running, fault, DECODING, rng))
        for fault in ("kill", "partition"):
            require(await faults.prefill(running, fault, PREFILLING, rng))
