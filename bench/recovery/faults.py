"""What is done to whom, and how long its clients wait."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from baton.settings import ProcessSettings
from bench.records import Param, Record
from bench.recovery.fleet import Fleet
from bench.recovery.streams import Stream, prompt, running

FAULTS = ("none", "kill", "reset", "stop", "partition")
#: Seconds that a stopped or cut off worker stays so: longer than anybody waits for it.
_AWAY = 8.0
#: Tokens that each stream has when the fault comes.
_BEGUN = 5
#: What the goals allow, seconds: to place again, and to notice that a worker says nothing.
_PLACE = 1.0
_FIELDS = ProcessSettings.model_fields
_NOTICE = _FIELDS["heartbeat_interval"].default * _FIELDS["heartbeats_missed"].default


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that decode when the fault comes. Lengths are in tokens."""

    streams: int
    prompt: int
    output: int
    prefill_token_s: float  #: seconds of compute per prompt token

    @property
    def prefill_s(self) -> float:
        """Seconds to compute one of them again."""
        return self.prefill_token_s * (self.prompt + self.output)


async def strike(fleet: Fleet, fault: str, victim: str) -> None:
    """Returns when the fault is over: at once, or after ``_AWAY`` seconds."""
    line = fleet.lines[victim]
    match fault:
        case "kill":
            fleet.send(victim, signal.SIGKILL)
        case "reset":
            line.cut()
        case "stop":
            fleet.send(victim, signal.SIGSTOP)
            await asyncio.sleep(_AWAY)
            fleet.send(victim, signal.SIGCONT)
        case "partition":
            line.partition()
            await asyncio.sleep(_AWAY)
            line.heal()


async def decode(fleet: Fleet, fault: str, load: Load, rng: random.Random) -> list[Record]:
    """The longest wait for a token of each stream that a decode worker's fault hit.

    Raises PeerFailed when a stream does not come to its end, with the very tokens.
    """
    prompts = [prompt(rng, load.prompt) for _ in range(load.streams)]
    async with running(fleet, prompts, load.output, _BEGUN) as streams:
        victim, its = await fleet.busiest("d")
        struck = time.monotonic()
        await strike(fleet, fault, victim)
        await asyncio.gather(*(stream.task for stream in streams))
    await fleet.until_well()
    same = await fleet.compatibility()
    for stream in streams:
        stream.require_exact(same)
    gaps = sorted(stream.gap(struck) for stream in streams)
    hit = gaps[-its:]  # theirs are the longest
    notice = _NOTICE if fault in ("stop", "partition") else 0.0
    # The last one waits until all others are computed again.
    bound = _PLACE + notice + load.prefill_s * len(hit)
    return _records(fault, "decode", len(hit), hit, bound)


async def prefill(fleet: Fleet, fault: str, load: Load, rng: random.Random) -> list[Record]:
    """What a prefill worker's fault in the middle of a prompt adds to its TTFT; one by one."""
    added = list[float]()
    alone = await Stream(fleet, *_one(rng, load)).settled()
    for _ in range(load.streams):
        stream = Stream(fleet, *_one(rng, load))
        await asyncio.sleep(0.5 * load.prefill_s)
        victim, _ = await fleet.busiest("p")
        striking = asyncio.create_task(strike(fleet, fault, victim))
        added.append((await stream.settled()).ttft - alone.ttft)
        await striking
        await fleet.until_well()
    notice = _NOTICE if fault in ("stop", "partition") else 0.0
    bound = _PLACE + notice + load.prefill_s
    return _records(fault, "prefill", load.streams, sorted(added), bound)


def _one(rng: random.Random, load: Load) -> tuple[list[int], int]:
    return prompt(rng, load.prompt), load.output


def _records(
    fault: str, victim: str, streams: int, values: Sequence[float], bound: float
) -> list[Record]:
    params: dict[str, Param] = {"fault": fault, "of": victim, "streams": streams}
    numbers = {
        "p50": _quantile(values, 0.5),
        "p99": _quantile(values, 0.99),
        "longest": values[-1],
        "goal": bound,
    }
    return [Record(name, value, "s", params) for name, value in numbers.items()]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
