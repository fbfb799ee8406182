"""``python -m bench.recovery``: how long clients wait when workers die, freeze or are cut off.

Two prefill and two decode workers with mock engines, a gateway, and a TCP proxy before each worker.
Of a decode worker: the longest wait for a token of each stream that it had. Of a prefill worker:
what its loss in the middle of a prompt adds to the time to the first token. A reset breaks all TCP
connections of a decode worker that goes on; it is asked for --streams at once, on one worker. The
goal is a second, and the time to compute again what was lost; for those who only fall silent, the
three beats until that is noticed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

from rich.console import Console

from baton.settings import UpSettings
from bench import records
from bench.records import Record
from bench.recovery import faults
from bench.recovery.faults import FAULTS, Load
from bench.recovery.fleet import fleet

_MODEL = Path(__file__).resolve().parents[2] / "model" / "demo" / "checkpoint"
_STEP_MS, _DECODE_US, _PREFILL_US = 20.0, 400.0, 200.0
#: Beside a reset: few, so that their own prompts hardly wait for one another.
_STREAMS, _PROMPT, _OUTPUT = 8, 256, 150
#: Prompts that a prefill worker is lost in, one after the other.
_ROUNDS, _LONG_PROMPT = 3, 1500


def settings(workers: int) -> UpSettings:
    """So many workers of each kind."""
    return UpSettings.model_validate(
        {
            "model": str(_MODEL),
            "served_model_name": "mock",
            "prefill": workers,
            "decode": workers,
            "threads": 1,
            "mock": True,
            "mock_step_ms": _STEP_MS,
            "mock_prefill_us": _PREFILL_US,
            "mock_decode_us": _DECODE_US,
            "max_running": 256,
            "num_blocks": 16_000,
            "log_level": "warning",
        }
    )


async def measure(streams: int, chosen: list[str]) -> list[Record]:
    """Every fault, in turn."""
    rng, found = random.Random(5), list[Record]()
    per_token = _PREFILL_US / 1e6
    few = Load(_STREAMS, _PROMPT, _OUTPUT, per_token)
    async with fleet(settings(2)) as two:
        await two.until_well()
        for fault in chosen:
            if fault != "reset":
                found += await faults.decode(two, fault, few, rng)
        for fault in chosen:
            if fault not in ("none", "reset"):
                long = Load(_ROUNDS, _LONG_PROMPT, 2, per_token)
                found += await faults.prefill(two, fault, long, rng)
    if "reset" in chosen:
        async with fleet(settings(1)) as one:
            await one.until_well()
            many = Load(streams, _PROMPT, _OUTPUT, per_token)
            for fault in ("none", "reset"):
                found += await faults.decode(one, fault, many, rng)
    return found


def main() -> int:
    """Exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument(
        "--streams", type=int, default=200, help="on the worker that is reset (%(default)s)"
    )
    parser.add_argument("--only", default=",".join(FAULTS), help="faults (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the records")
    asked = parser.parse_args()
    chosen = asked.only.split(",")
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(FAULTS)}")
    found = asyncio.run(measure(asked.streams, chosen))
    Console().print(records.table("without a token, or added to the first one's time", found))
    if asked.json is not None:
        records.write(asked.json, found)
    slowest = [record.value for record in found if record.name == "longest"]
    goals = [record.value for record in found if record.name == "goal"]
    return int(any(took > goal for took, goal in zip(slowest, goals, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
