"""What a step takes while answers are held to a grammar: ``python -m bench.masks``.

    free      nothing is held
    series    masks are made after the forward pass, before sampling
    beside    masks are made on a thread while the step computes, as workers do

Real steps of the engine, in one process, with random weights and a vocabulary of the model's size;
every answer is a JSON array of strings. The three are timed in turn; medians of all rounds, and
what the second and third take beyond the first. Let nothing else run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baton import log as logs
from baton.configure import load
from baton.grammar_limits import GrammarLimits
from baton.grammars import Constraint, Grammars
from baton.identity import Role
from baton.kv.heap import keep_freed_memory
from baton.sampling import SamplingSpec
from baton.settings import DecodeSettings
from bench.records import Record, table
from bench.shapes import SHAPES, checkpoint
from gateway import grammar
from gateway.tool_schemas import JsonObject
from model.engine.engine import Engine
from model.engine.events import Event, SequenceFailed
from model.engine.masks import MasksAhead
from model.engine.sequence import SequenceRequest
from model.worker.loading import LoadedModel, load_model

WAYS = ("free", "series", "beside")
#: It goes on for longer than is measured.
_SCHEMA: JsonObject = {
    "type": "array",
    "items": {"type": "string", "maxLength": 60},
    "minItems": 9999,
}
_CONTEXT = 128
#: Steps before those that count.
_WARM = 5
_EOS = 0
#: Shares of a vocabulary: tokens of letters, and tokens with a space before them.
_LETTERS, _SPACED = 0.92, 0.5


def tokenizer(vocab: int) -> Tokenizer:
    """Bytes, and random tokens of two to eight letters, some of signs: as many as there are ids."""
    rng = random.Random(vocab)
    words = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    while len(words) < vocab:
        letters = "abcdefghilmnoprstuwy" if rng.random() < _LETTERS else '",:{}[]()-.=0123456789'
        space = "Ġ" if rng.random() < _SPACED else ""
        words[space + "".join(rng.choices(letters, k=rng.randint(2, 8)))] = None
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    made.decoder = decoders.ByteLevel()
    return made


async def constraint(vocab: int) -> Constraint:
    limits = GrammarLimits(bytes=2**20, states=2**20, kept=4)
    grammars = Grammars(tokenizer(vocab).to_str, vocab, limits)
    try:
        text = grammar.Plan(body=grammar.json_schema(_SCHEMA)).text()
        return await grammars.begin(text, (_EOS,))
    finally:
        grammars.close()


@contextmanager
def running(
    loaded: LoadedModel, batch: int, held: Constraint | None, masks: MasksAhead | None
) -> Iterator[tuple[Engine, list[Event]]]:
    """An engine with a batch that decodes, as if its KV had come from elsewhere."""
    events: list[Event] = []
    engine = Engine(loaded.runner, loaded.limits, events.extend, masks=masks)
    engine.take_roles([Role.DECODE])
    spec = SamplingSpec(temperature=0.0, max_tokens=4096, eos_ids=(_EOS,), ignore_eos=held is None)
    rng = random.Random(batch)
    first = 1 if held is None else _first(held)
    live = []
    for _ in range(batch):
        prompt = tuple(rng.choices(range(1, loaded.vocab_size), k=_CONTEXT))
        request = SequenceRequest(prompt_ids=prompt, spec=spec, constraint=held, receive=True)
        live.append(engine.add(request).seq_id)
        engine.activate(live[-1], first)
    try:
        yield engine, events
    finally:
        for seq_id in live:
            engine.cancel(seq_id)
        engine.stop()


def _first(held: Constraint) -> int:
    """An id that an answer may begin with."""
    mask = int.from_bytes(held.allowed(()), "little")
    return (mask & -mask).bit_length() - 1


def timed(engine: Engine, events: list[Event], steps: int) -> list[float]:
    """Seconds of each decode step. Raises what a sequence failed with."""
    took: list[float] = []
    for _ in range(_WARM + steps):
        events.clear()
        began = time.perf_counter()
        engine.step()
        took.append(time.perf_counter() - began)
        for event in events:
            if isinstance(event, SequenceFailed):
                raise event.error
    return took[_WARM:]


def measure(asked: argparse.Namespace) -> list[Record]:
    flags = ["--model", str(checkpoint(SHAPES[asked.model])), "--dtype", "bfloat16"]
    flags += ["--threads", str(asked.threads), "--num-blocks", "4096", "--no-prefix-cache"]
    loaded = load_model(load(DecodeSettings, flags, "bench.masks"), lambda done: None)
    keep_freed_memory()
    held = asyncio.run(constraint(loaded.vocab_size))
    found: list[Record] = []
    for batch in asked.batch:
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way in WAYS:
                masks = MasksAhead() if way == "beside" else None
                with running(loaded, batch, None if way == "free" else held, masks) as engine:
                    took[way] += timed(*engine, asked.steps)
        base = median(took["free"])
        for way in WAYS:
            params = {"batch": batch, "way": way, "threads": asked.threads}
            found.append(Record("step", median(took[way]) * 1e3, "ms", params))
            found.append(Record("more", (median(took[way]) - base) * 1e3, "ms", params))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--model", choices=SHAPES, default=next(iter(SHAPES)))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1), metavar="N")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="of each round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    logs.configure("warning", "console", "bench.masks")
    Console().print(table("Steps", measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
