"""``python -m bench.scheduler``: what a step costs the scheduler and the allocator.

Microseconds to plan a step, to take in its result and to fetch its events, for a batch that
decodes; nothing is computed in between. Every sequence fills a block in one of ``block_size``
steps, which takes a new block and puts the full one into the prefix cache:

    spread      as many fill one in each step
    together    all in the same one: that step is listed as well

Processor time, so that other processes do not count. The garbage collector runs, as in a worker.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from baton.sampling import SamplingSpec
from bench import records
from bench.records import Param, Record
from model.cache.blocks import BlockPool
from model.cache.prefix import PrefixCache
from model.engine.plan import StepResult
from model.engine.scheduler import Scheduler
from model.engine.sequence import SequenceRequest
from model.engine.settings import SchedulerSettings

BLOCK = 16
PROMPT = 128  #: tokens, a whole number of blocks
TOKEN = 7
BORDERS = ("spread", "together")


def batch(sequences: int, borders: str, steps: int) -> Scheduler:
    """A scheduler whose batch has so many sequences, with room for so many steps of each."""
    pool = BlockPool(sequences * ((PROMPT + BLOCK + steps) // BLOCK + 1))
    settings = SchedulerSettings(
        block_size=BLOCK,
        max_model_len=PROMPT + 2 * BLOCK + steps,
        max_tokens_per_step=sequences + 1,
        chunk_tokens=BLOCK,
        max_running=sequences,
        prefill_order="fcfs",
    )
    scheduler = Scheduler(settings, pool, PrefixCache(pool, BLOCK, "bench"), time.monotonic)
    spec = SamplingSpec(max_tokens=steps + 1)
    for i in range(sequences):
        longer = i % BLOCK if borders == "spread" else 0
        prompt = (i,) * (PROMPT + longer)
        request = SequenceRequest(prompt_ids=prompt, spec=spec, receive=True)
        scheduler.activate(scheduler.add(request).seq_id, TOKEN)
    return scheduler


def costs(scheduler: Scheduler, steps: int) -> list[float]:
    """Microseconds of each step."""
    found = []
    for _ in range(steps):
        started = time.thread_time()
        plan = scheduler.plan()
        planned = time.thread_time()
        result = StepResult(plan.step, dict.fromkeys((s.seq_id for s in plan.slices), TOKEN))
        computed = time.thread_time()
        scheduler.commit(result)
        scheduler.take_events()
        found.append((planned - started + time.thread_time() - computed) * 1e6)
    return found


def measure(sizes: Sequence[int], steps: int) -> list[Record]:
    """Both ways of filling blocks, for batches of so many sequences."""
    found = list[Record]()
    for sequences in sizes:
        for borders in BORDERS:
            each = costs(batch(sequences, borders, steps), steps)
            params: dict[str, Param] = {"sequences": sequences, "borders": borders}
            found.append(Record("median", statistics.median(each), "us", params))
            found.append(Record("p99", statistics.quantiles(each, n=100)[98], "us", params))
            if borders == "together":
                full = [*each[::BLOCK], *each[BLOCK - 1 :: BLOCK]]
                found.append(Record("all at a border", statistics.median(full), "us", params))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scheduler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--steps", type=int, default=2048, help="of each batch (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the records")
    asked = parser.parse_args(argv)
    if min(asked.sequences) < 1 or asked.steps < 2 * BLOCK:
        parser.error(f"--sequences is at least 1 and --steps at least {2 * BLOCK}")
    found = measure(asked.sequences, asked.steps)
    Console().print(records.table("Scheduler and allocator, a step", found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
