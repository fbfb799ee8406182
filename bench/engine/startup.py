"""How long a worker takes until it serves, and how much memory it ever takes.

A decode worker that prefills by itself, with the pool that it has by default, on one core: from the
start of its process to "ready", and to the first token of a first prompt. Its peak is read after an
answer; what an idle process takes that has imported torch is not Baton's and is taken off.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from baton.settings import DecodeSettings
from bench import cores
from bench.cluster import Child, Spec, ask, report, session
from bench.engine.sides import OURS
from bench.records import Param, Record
from bench.shapes import ModelShape, checkpoint
from bench.usage import peak_bytes
from gateway.fleet import Worker

_MIB = 2**20
_PROMPT, _ANSWER = 1024, 16  # tokens
_IDLE = "import torch; print(); input()"  # until stdin ends


@dataclass(frozen=True, slots=True)
class Start:
    """One life of a worker."""

    ready_s: float
    first_token_s: float  #: from the start of the process, too
    peak: int  #: bytes
    idle: int  #: bytes of an idle process with torch


async def measure(
    shape: ModelShape, sides: Sequence[str], rounds: int, say: Callable[[str], None]
) -> list[Record]:
    """Those of the sides that are Baton's. Raises PeerFailed."""
    lives: dict[str, list[Start]] = {side: [] for side in sides if side in OURS}
    for count in range(rounds):
        for side, every in lives.items():
            say(f"start of a worker, {side}, {count + 1} of {rounds}")
            every.append(await _live(shape, side))
    return [record for side, every in lives.items() for record in evaluate(shape, side, every)]


def evaluate(shape: ModelShape, side: str, lives: Sequence[Start]) -> list[Record]:
    """The records of one side. Weights count as the checkpoint has them, or as rounded."""
    params: dict[str, Param] = {"side": side, "threads": 1}
    matrices = (checkpoint(shape) / "model.safetensors").stat().st_size
    weights = matrices * OURS[side].weight_bits // 16
    pool = int(DecodeSettings.model_fields["kv_memory_gib"].default * 2**30)
    own = [life.peak - life.idle for life in lives]
    return [
        Record("ready", median(life.ready_s for life in lives), "s", params),
        Record("first token", median(life.first_token_s for life in lives), "s", params),
        Record("import torch", median(life.idle for life in lives) / _MIB, "MiB", params),
        Record("peak beyond it", median(own) / _MIB, "MiB", params),
        Record("weights", weights / _MIB, "MiB", params),
        Record("KV pool", pool / _MIB, "MiB", params),
        Record("peak / held", median(own) / (weights + pool), "ratio", params),
    ]


async def _live(shape: ModelShape, side: str) -> Start:
    changes = OURS[side].changes
    flags = ["--model", str(checkpoint(shape)), "--dtype", "bfloat16", "--local-prefill"]
    if changes.get("quantize"):
        flags += ["--quantize", changes["quantize"]]
    if changes.get("deterministic"):
        flags.append("--deterministic")
    idle = await _idle_peak()
    began = time.monotonic()
    child = await Child.start(Spec("decode_worker", cores.first(1)[0], tuple(flags)))
    try:
        address = await child.ready()
        ready = time.monotonic()
        async with session(Worker(address, await report(address))) as to:
            prompt = [index % shape.vocab for index in range(_PROMPT)]
            given = await ask(to, prompt, _ANSWER, None)
        return Start(ready - began, given.came[0] - began, peak_bytes(child.pid), idle)
    finally:
        await child.stop()


async def _idle_peak() -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _IDLE), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None and process.stdout is not None, "it was started with pipes"
    try:
        await process.stdout.readline()
        return peak_bytes(process.pid)
    finally:
        process.kill()
        await process.wait()
