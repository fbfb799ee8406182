"""The sides that are timed, each a process of its own on the same cores, asked one at a time."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.engine.serve import Answer, Command, Setup
from bench.pair import answer, ask

#: Seconds for one answer: vLLM compiles before the first.
_PATIENCE = 900.0
#: Seconds before each question: until threads that spin after their work have gone to sleep.
_PAUSE = 0.05
_STOP = 10.0  # seconds until a side that nobody asks any more has ended

HARDWARE, TRANSFORMERS, VLLM = "hardware", "transformers", "vllm"
PEERS = (TRANSFORMERS, VLLM)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way that Baton computes."""

    changes: Mapping[str, Any]  #: of a Setup
    weight_bits: int = 16


OURS = {
    "bf16": Variant({}),
    "int8": Variant({"quantize": "int8"}, 8),
    "int4": Variant({"quantize": "int4"}, 4),
    "deterministic": Variant({"deterministic": True}),
}


def weight_bits(side: str) -> int:
    return OURS[side].weight_bits if side in OURS else 16


@dataclass(frozen=True, slots=True)
class _Start:
    """How a side's process is started."""

    python: Path
    module: str
    setup: Setup
    environment: Mapping[str, str]


class SideProcess:
    """One side, ready."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, **command: str | int) -> Answer:
        """Raises PeerFailed when it ends instead, TimeoutError when it says nothing."""
        told: Command = command
        await asyncio.sleep(_PAUSE)
        return await ask(self._process, told, _PATIENCE)

    async def seconds(self, **command: str | int) -> float:
        return (await self.ask(**command))["seconds"]


@asynccontextmanager
async def sides(
    names: Sequence[str], setup: Setup, kv_bytes: int, vllm_python: Path | None
) -> AsyncIterator[dict[str, SideProcess]]:
    """The named sides, ready, started one after another. ``kv_bytes`` are those of the pool.

    Raises PeerFailed.
    """
    processes: list[Process] = []
    try:
        for name in names:
            start = _start(name, setup, kv_bytes, vllm_python)
            arguments = ("-m", start.module, json.dumps(asdict(start.setup)))
            process = await asyncio.create_subprocess_exec(
                *(str(start.python), *arguments), env=start.environment, stdin=PIPE, stdout=PIPE
            )
            processes.append(process)
            await answer(process, _PATIENCE)
        yield {name: SideProcess(one) for name, one in zip(names, processes, strict=True)}
    finally:
        for process in processes:
            await _stop(process)


async def _stop(process: Process) -> None:
    assert process.stdin is not None, "it was started with a pipe"
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


def _start(name: str, setup: Setup, kv_bytes: int, vllm_python: Path | None) -> _Start:
    environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads)}
    python = Path(sys.executable)
    if name == HARDWARE:
        return _Start(python, "bench.engine.hardware", setup, environment)
    if name == TRANSFORMERS:
        return _Start(python, "bench.engine.hugging_face", setup, environment)
    if name == VLLM:
        assert vllm_python is not None, "it was asked for with an interpreter"
        environment |= _vllm_environment(setup, kv_bytes, vllm_python)
        return _Start(vllm_python, "bench.engine.vllm_peer", setup, environment)
    if setup.threads > 1:  # as `baton up` has it
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **environment}
    changed = replace(setup, **OURS[name].changes)
    return _Start(python, "bench.engine.ours", changed, environment)


def _vllm_environment(setup: Setup, kv_bytes: int, python: Path) -> dict[str, str]:
    """What vLLM's manual has its users set on a CPU, what it sets for its own processes, and where
    to find this package."""
    found = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(1.1 * kv_bytes / 2**30)),  # GiB
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        places = ",".join(map(str, setup.cores))
        found |= {
            "LD_PRELOAD": str(openmp),
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{places}]",
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
    return found
