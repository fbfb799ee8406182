"""A real fleet under load: what simulated ones are held against.

``baton up`` starts gateway and workers; the load generator (``bench/load``), a process of its own,
asks. Workers are mocks that take as long as a file of costs says, or engines with a model of
SmolLM2-135M's shape.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from baton.settings import UpSettings
from bench import costs, overload, trace
from bench.costs import Costs
from bench.load import raw
from bench.load.raw import Level, Writer
from bench.load.senders import Senders
from bench.load.statistics import Measured
from bench.load.workload import Endpoint, Json, Lengths, arrivals
from bench.shapes import SMOLLM2_135M, checkpoint
from bench.simulate.fleet import Fleet, Setup
from bench.simulate.jobs import Job
from bench.simulate.machine import MODEL
from bench.trace import Request

#: KV blocks of a worker, and tokens of its longest sequence.
BLOCKS, LONGEST = 2048, 2048
#: Ids of prompts are below this.
_VOCABULARY = 256
_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Workers, and how they are run: in the same way real and simulated."""

    costs: Costs
    engines: bool = False  #: real ones; else mocks

    def setup(self, fleet: Fleet, seed: int = 0) -> Setup:
        """To be simulated."""
        given = {"model": MODEL, "local_prefill_queue": 0}
        return Setup(
            fleet=fleet,
            settings=UpSettings.model_validate(given),
            costs=self.costs,
            blocks=BLOCKS,
            longest=LONGEST,
            seed=seed,
        )

    def flags(self, folder: Path) -> tuple[str, ...]:
        """Of ``baton up``; ``folder`` keeps the costs. Raises OSError."""
        flags = (
            *("--num-blocks", str(BLOCKS), "--threads", "1", "--no-prefix-cache"),
            *("--local-prefill-queue", "0"),
        )
        if self.engines:
            return (*flags, "--dtype", "bfloat16")
        costs.write(folder / "costs.json", self.costs)
        return (*flags, "--mock", "--mock-costs", str(folder / "costs.json"))


@dataclass(frozen=True, slots=True)
class Running:
    """A fleet that can be asked."""

    url: str
    folder: Path

    async def run(self, jobs: Sequence[Job], seed: int) -> Measured:
        """Every job at its time; prompts are drawn, and none is like another. Raises as
        ``Senders.run``, and RuntimeError where nothing was answered."""
        asked = [
            Request(
                job.at,
                trace.tokens(f"{seed}, job {job.number}", job.tokens, _VOCABULARY),
                job.output,
                None,
            )
            for job in jobs
        ]
        extra: dict[str, Json] = {"ignore_eos": True, "return_token_ids": True}
        endpoint = Endpoint(url=self.url, model=overload.NAME, chat=False, words=False, extra=extra)
        senders = Senders(endpoint=endpoint, processes=1, timeout=_TIMEOUT)
        path = self.folder / "seen.jsonl"
        with closing(Writer(path, {})) as out:
            await senders.run(Level("", "rate", 1.0), asked, out, lambda good: None)
        measured = Measured(raw.read(path).levels[0])
        if not measured.good.any():
            raise RuntimeError(f"no answer: {measured.level.answers[0].status}")
        return measured


@asynccontextmanager
async def running(kind: Kind, fleet: Fleet) -> AsyncIterator[Running]:
    """Start it, and stop it afterwards."""
    sizes = (
        *("--prefill", str(fleet.prefill), "--decode", str(fleet.decode)),
        *("--colocated", str(fleet.colocated)),
    )
    with TemporaryDirectory() as made:
        folder = Path(made)
        model = _engine_model(folder) if kind.engines else overload.CHECKPOINT
        async with overload.fleet((*kind.flags(folder), *sizes), model) as found:
            yield Running(found.url, folder)


def _engine_model(folder: Path) -> Path:
    """SmolLM2-135M's shape, with the demo model's tokenizer: ids that it has not are shown as
    ids."""
    made = folder / "model"
    made.mkdir()
    for file in checkpoint(SMOLLM2_135M).iterdir():
        (made / file.name).symlink_to(file)
    copyfile(overload.CHECKPOINT / "tokenizer.json", made / "tokenizer.json")
    return made


def short(size: Fleet) -> str:
    """Its name in tables."""
    return "colocated" if size.colocated else f"{size.prefill}P:{size.decode}D"


def drawn(count: int, rate: float, prompt: Lengths, output: Lengths, seed: int) -> list[Job]:
    """Random lengths at random times."""
    rng, times = random.Random(seed), arrivals(count, rate, 1.0, seed)
    return [Job(n, at, prompt.draw(rng), output.draw(rng)) for n, at in enumerate(times)]
