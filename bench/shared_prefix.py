"""``python -m bench.shared_prefix``: requests that begin alike, with and without the prefix cache.

All arrive at once at an engine that computes and decodes (a colocated worker's, with its settings),
on one thread. With the cache the prefix is computed once, though nobody has computed it when they
come. Turns alternate, every round has another prefix; values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from baton.deadlines import UNLIMITED
from baton.generation import AttemptKey, Generation
from baton.identity import Role
from baton.sampling import SamplingSpec
from baton.settings import DecodeSettings
from bench import records
from bench.records import Param, Record
from bench.shapes import SHAPES, checkpoint
from model.engine.engine import Engine
from model.engine.events import Event, SequenceFailed, SequencePreempted, TokenSampled
from model.worker.loading import LoadedModel, load_model
from model.worker.requests import to_sequence

_SEED = 4


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives at once. Lengths are in tokens."""

    requests: int
    prefix: int  #: that all have in common
    suffix: int  #: of each
    output: int  #: of each

    def prompts(self, seed: int) -> list[tuple[int, ...]]:
        """Of ids that every shape knows."""
        draw = random.Random(seed)
        common = draw.choices(range(512), k=self.prefix)
        return [(*common, *draw.choices(range(512), k=self.suffix)) for _ in range(self.requests)]


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of a load."""

    seconds: float
    computed: int  #: prompt tokens
    steps: int


def run(loaded: LoadedModel, load: Load, seed: int, *, prefix_cache: bool) -> Turn:
    """Serve the load on an engine of its own.

    Raises RuntimeError when a request does not come to its end, WorkerFull when the pool is too
    small for all.
    """
    events = list[Event]()
    engine = Engine(loaded.runner, loaded.limits, events.extend)
    engine.take_roles([Role.DECODE])
    spec = SamplingSpec(temperature=0.0, max_tokens=load.output, ignore_eos=True)
    prompts = load.prompts(seed)
    began = time.perf_counter()
    for i, prompt in enumerate(prompts):
        asked = Generation(AttemptKey(str(i), 0), prompt, (), spec, UNLIMITED)
        engine.add(to_sequence(asked, loaded.vocab_size, prefix_cache=prefix_cache))
    while engine.step():
        pass
    seconds = time.perf_counter() - began
    if early := [e for e in events if isinstance(e, SequenceFailed | SequencePreempted)]:
        raise RuntimeError(f"{len(early)} of {load.requests} requests ended early: {early[0]}")
    last = [e.timings for e in events if isinstance(e, TokenSampled) and e.finish_reason]
    reused = sum(timings.cached_tokens for timings in last if timings is not None)
    return Turn(seconds, sum(map(len, prompts)) - reused, engine.load().steps)


def measure(loaded: LoadedModel, load: Load, rounds: int) -> list[Record]:
    """Both ways in turn."""
    run(loaded, Load(1, load.prefix, load.suffix, 2), _SEED, prefix_cache=False)  # warms up
    turns: dict[bool, list[Turn]] = {True: [], False: []}
    for i in range(rounds):
        for on, found in turns.items():
            found.append(run(loaded, load, _SEED + 1 + i, prefix_cache=on))
    tokens = load.requests * load.output
    listed = list[Record]()
    for on, found in turns.items():
        params: dict[str, Param] = {"prefix cache": "on" if on else "off"}
        listed.append(Record("tokens/s", median(tokens / t.seconds for t in found), "1/s", params))
        listed.append(Record("prompt tokens computed", found[0].computed, "tokens", params))
        listed.append(Record("steps", found[0].steps, "steps", params))
    ratio = median(
        off.seconds / on.seconds for on, off in zip(turns[True], turns[False], strict=True)
    )
    return [*listed, Record("throughput", ratio, "ratio", {"prefix cache": "on / off"})]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.shared_prefix",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", help="shape", choices=[*SHAPES], default=next(iter(SHAPES)))
    parser.add_argument("--requests", help="that arrive at once", type=int, default=32)
    parser.add_argument("--prefix", help="tokens that all begin with", type=int, default=1024)
    parser.add_argument("--suffix", help="tokens of each prompt after it", type=int, default=32)
    parser.add_argument("--output", help="tokens generated for each", type=int, default=32)
    parser.add_argument("--rounds", help="of both turns", type=int, default=3)
    parser.add_argument("--json", help="where to write the records", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    if min(asked.requests, asked.prefix, asked.suffix, asked.output, asked.rounds) < 1:
        parser.error("requests, tokens and rounds are at least 1")
    shape = SHAPES[asked.model]
    settings = DecodeSettings.model_validate(
        {"model": str(checkpoint(shape)), "dtype": "bfloat16", "threads": 1, "local_prefill": True}
    )
    loaded = load_model(settings, lambda _: None)
    load = Load(asked.requests, asked.prefix, asked.suffix, asked.output)
    try:
        found = measure(loaded, load, asked.rounds)
    finally:
        loaded.runner.close()
    title = f"{load.requests} requests over a prefix of {load.prefix} tokens, {shape.name}"
    Console().print(records.table(title, found))
    if asked.json is not None:
        records.write(asked.json, found)


if __name__ == "__main__":
    main()
