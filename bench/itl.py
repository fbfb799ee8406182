"""What a hand-off that arrives costs those who decode meanwhile.

A batch decodes without a pause. For a while nothing else happens, for another while the KV of a
long prompt comes at a steady pace: the two take turns, in changing order. That prompt never joins
the batch, as it is cancelled before its last block: what is seen is its arrival alone. Its first
moments, when its ids are taken in and its blocks reserved, do not count.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench import cluster, cores, course
from bench.cluster import Background, Spec
from bench.pair import PeerFailed
from bench.records import Param, Record
from bench.shapes import ModelShape
from gateway.fleet import Worker
from gateway.session import Session

#: Seconds that a hand-off goes on before it is watched, and after.
_SETTLE, _MARGIN = 0.25, 0.25
#: Tokens that each sequence of the batch may reach: more than a round has steps.
_LONGEST = 8192
_GB, _MS = 1e9, 1e3


@dataclass(frozen=True, slots=True)
class Load:
    """What decodes, and what arrives."""

    gb_per_s: float
    window: float  #: seconds watched at a time
    rounds: int
    sequences: int = 4
    prompt: int = 64  #: tokens of each sequence

    def tokens(self, shape: ModelShape) -> int:
        """Of a prompt whose KV arrives for as long as it is watched, and a little longer.

        Raises ValueError where the model's context has no room for it.
        """
        seconds = _SETTLE + self.window + _MARGIN
        tokens = math.ceil(self.gb_per_s * _GB * seconds / shape.token_bytes)
        if tokens >= shape.context:
            raise ValueError(
                f"{self.gb_per_s:g} GB/s for {seconds:g} s are {tokens} tokens of "
                f"{shape.token_bytes} bytes, but the context is {shape.context}"
            )
        return tokens


@dataclass(frozen=True, slots=True)
class Arriving:
    """A hand-off, and when it was watched, on the monotonic clock."""

    request_id: str
    since: float
    until: float


@dataclass(slots=True)
class Watched:
    """Seconds between tokens, and the hand-offs that arrived."""

    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    arriving: list[Arriving] = field(default_factory=list)


async def measure(
    shape: ModelShape, transports: Sequence[str], load: Load, say: Callable[[str], None]
) -> list[Record]:
    """Every transport that can be used. Raises PeerFailed, ValueError for a load too long."""
    tokens, (near, far) = load.tokens(shape), cores.two()
    with TemporaryDirectory() as folder:
        traces = Path(folder) / "traces"
        model = cluster.model_flags(shape, tokens + load.sequences * _LONGEST)
        model += ("--kv-trace", str(traces))
        real = (*model, "--dtype", "bfloat16")
        pace = ("--kv-transports", ",".join(transports), "--gb-per-s", f"{load.gb_per_s:g}")
        specs = {"sender": Spec("bench.sender", near, (*model, *pace))}
        specs |= {name: cluster.decode_spec(real, name, far) for name in transports}
        seen: dict[str, Watched] = {}
        async with cluster.workers(specs) as workers:
            unavailable = cluster.unavailable(workers, transports)
            for name in transports:
                if name in unavailable:
                    continue
                say(f"ITL beside a hand-off over {name}")
                async with cluster.session(workers[name]) as session:
                    watch = _Watch(session, workers["sender"], shape, load)
                    seen[name] = await watch.run()
        # By now every worker has written what it traced.
        return [
            record
            for name, watched in seen.items()
            for record in evaluate(name, load, watched, speeds(shape, traces, watched.arriving))
        ]


def speeds(shape: ModelShape, traces: Path, watched: Sequence[Arriving]) -> list[float]:
    """How fast KV was written meanwhile, GB/s."""
    rows = course.written(traces)
    return [
        sum(row.tokens for row in rows[one.request_id] if one.since <= row.at < one.until)
        * (shape.token_bytes / shape.layers / _GB / (one.until - one.since))
        for one in watched
    ]


def evaluate(transport: str, load: Load, seen: Watched, arrived: Sequence[float]) -> list[Record]:
    """The records of one transport."""
    params: dict[str, Param] = {
        "path": transport,
        "batch": load.sequences,
        "wanted GB/s": load.gb_per_s,
    }
    found = [Record("arrived", median(arrived), "GB/s", params)]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        without, beside = percentile(seen.without, share), percentile(seen.beside, share)
        found += (
            Record(f"{name} without", without * _MS, "ms", params),
            Record(f"{name} beside", beside * _MS, "ms", params),
            Record(f"{name} ratio", beside / without, "ratio", params),
        )
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of all do not exceed: nearest rank.

    Raises ValueError when there are none.
    """
    if not values:
        raise ValueError("no token came while it was watched: the windows are too short")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class _Watch:
    """Of one decode worker."""

    def __init__(self, session: Session, sender: Worker, shape: ModelShape, load: Load) -> None:
        self._session = session
        self._sender = sender
        self._shape = shape
        self._load = load
        self._random = np.random.default_rng(0)

    async def run(self) -> Watched:
        seen = Watched()
        for count in range(self._load.rounds):
            prompts = [self._prompt(self._load.prompt) for _ in range(self._load.sequences)]
            async with cluster.background(self._session, prompts, _LONGEST) as batch:
                for beside in (False, True) if count % 2 else (True, False):
                    if beside:
                        await self._beside(batch, seen)
                    else:
                        seen.without += batch.gaps(*await self._wait())
        return seen

    async def _wait(self) -> tuple[float, float]:
        """From when to when it was watched."""
        await asyncio.sleep(_SETTLE)
        since = time.monotonic()
        await asyncio.sleep(self._load.window)
        return since, time.monotonic()

    async def _beside(self, batch: Background, seen: Watched) -> None:
        """A hand-off arrives, and is given up in the end."""
        tokens = self._load.tokens(self._shape)
        attempt = cluster.submit(self._session, self._prompt(tokens), 2, self._sender)
        try:
            watched = await self._wait()
            if attempt.ended is not None:
                raise PeerFailed(f"the hand-off ended while it was watched: {attempt.ended}")
        finally:
            attempt.cancel()
        seen.beside += batch.gaps(*watched)
        seen.arriving.append(Arriving(attempt.key.request_id, *watched))

    def _prompt(self, tokens: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._shape.vocab, tokens).tolist()
        return ids
