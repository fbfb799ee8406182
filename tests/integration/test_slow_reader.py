"""A prompt whose KV is read too slowly lets others go first, and waits for nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.workers import LAYOUT, Worker, cluster, expected, generation, prompt, session

CHUNK = 64  #: tokens, a whole step
STEP = LAYOUT.layers  #: permits that a step takes


class Pace:
    """Engines compute a layer for each permit; once ``free``, as many as they like."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._free = threading.Event()

    def __call__(self, _: float) -> None:
        while not self._free.is_set() and not self._permits.acquire(timeout=0.01):
            pass

    def steps(self, count: int) -> None:
        self._permits.release(count * STEP)

    def free(self) -> None:
        self._free.set()

    async def __aenter__(self) -> None:
        """For the body; then they are free, that workers can end."""

    async def __aexit__(self, *_: object) -> None:
        self.free()


def stall(worker: Worker) -> Callable[[], None]:
    """No KV gets into its pool any more, until what is returned is called."""
    store: Any = worker.runtime.runner.store
    write, going = store.write, asyncio.Event()

    async def stalled(layer: int, blocks: Sequence[int], data: memoryview) -> None:
        await going.wait()
        await write(layer, blocks, data)

    store.write = stalled
    return going.set


async def test_a_second_prompt_goes_first() -> None:
    pace = Pace()
    long = generation(prompt(7 * CHUNK), request_id="long")
    # A single chunk: of several its own reader might be late with the first, on a busy machine.
    short = generation(prompt(CHUNK, 3), request_id="short")
    async with (
        cluster(
            decode=2,
            num_blocks=256,
            chunk_tokens=CHUNK,
            cost=CostModel(step_s=1.0),
            sleep=pace,
            shm_bytes=4096 + 8 * LAYOUT.block_bytes,
            kv_lag_bytes=4 * LAYOUT.block_bytes,
            heartbeat_interval=5.0,  # nobody is to be missed here
        ) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
        pace,
    ):
        go_on, engine = stall(c.decode[0]), c.prefill[0].runtime.engine
        slow = one.submit(long, c.prefill[0])
        await eventually(lambda: engine.load().waiting == 1)
        pace.steps(2)
        await eventually(lambda: engine.load().steps == 2)
        quick = two.submit(short, c.prefill[0])
        await eventually(lambda: engine.load().waiting == 2)
        pace.steps(2)  # one that had begun, and the second prompt's; in order of arrival it is 8th
        await asyncio.wait_for(quick.progress.wait(), 60)
        assert not slow.progress.is_set()
        pace.free()
        await asyncio.wait_for(slow.progress.wait(), 60)  # nobody else wants to compute
        assert await quick.finished() == expected(short)
        assert slow.token_ids == expected(long)[:1]
        go_on()
        assert await slow.finished() == expected(long)
