"""``python -m bench.serve``: load for any OpenAI endpoint, and what came of it.

    bench.serve --url http://127.0.0.1:8000 --model m --rate 1,2,4       open loop, Poisson
    bench.serve ... --rate 4 --burstiness 0.25                           in bursts; inf: steadily
    bench.serve ... --concurrency 1,8,64                                 closed loop
    bench.serve ... --trace azure.csv --length 0.25 --speed 0.5          a trace, as it came
    bench.serve ... --trace azure.csv --length 0.25 --rate 1,2,4         its lengths, other times

Each value of --rate, --concurrency or --speed is a level of load of its own, with prompts that no
other had. Formats of traces: bench/trace.py. What was seen is stored as JSON lines (--raw;
bench/load/raw.py); from that file ``bench.report`` derives, now and later, what is told, and
``bench.compare`` sets two of them side by side. The key of the endpoint, if it wants one, is taken
from OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import machine, report, trace
from bench.arguments import at_least, positive
from bench.load import raw, workload
from bench.load.raw import Level, Writer
from bench.load.senders import SenderFailed, Senders
from bench.load.workload import Endpoint, Lengths
from bench.records import Param
from bench.trace import Line, Request, Scale, TraceError

_LABELS = {"rate": "{:g} requests/s", "concurrency": "{:g} at once", "speed": "{:g} times as fast"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Makes each level's requests."""

    options: argparse.Namespace
    lines: Sequence[Line]  #: of the trace, if there is one

    @property
    def kind(self) -> str:
        given = [kind for kind in _LABELS if getattr(self.options, kind) is not None]
        return given[0] if given else "speed"

    def levels(self) -> Iterator[tuple[Level, list[Request]]]:
        """In turn, each with other prompts. Raises TraceError, ValueError."""
        kind = self.kind
        for seed, value in enumerate(getattr(self.options, kind) or (1.0,), self.options.seed + 1):
            asked = self.requests(kind, value, seed)
            level = Level(_LABELS[kind].format(value), kind, value)
            if any(line.hash_ids for line in self.lines):
                level.reusable = trace.most_reusable(asked, self.options.block_size)
            yield level, asked

    def requests(self, kind: str, value: float, seed: int) -> list[Request]:
        made = self._of_trace(kind, value, seed) if self.options.trace else self._drawn(seed)
        if kind == "rate":
            return workload.at_rate(made, value, self.options.burstiness, seed)
        return made

    def _drawn(self, seed: int) -> list[Request]:
        options = self.options
        return workload.drawn(
            options.requests,
            options.prompt_tokens,
            options.output_tokens,
            prefix=options.prefix,
            vocabulary=options.vocabulary,
            seed=seed,
        )

    def _of_trace(self, kind: str, value: float, seed: int) -> list[Request]:
        options = self.options
        scale = Scale(
            length=options.length,
            output=options.output,
            speed=value if kind == "speed" else 1.0,
            prompt_cap=options.prompt_cap,
            output_cap=options.output_cap,
            vocabulary=options.vocabulary,
            seed=seed,
        )
        made = trace.requests(self.lines, scale)
        return [one for one in made if len(one.prompt) <= options.longest]

    def params(self, endpoint: Endpoint) -> dict[str, Param]:
        """Everything that figures hold for."""
        options = self.options
        found: dict[str, Param] = {
            "label": options.label,
            "model": endpoint.model,
            "url": endpoint.address,
            "workload": self._words(),
            "seed": options.seed,
            "processes": options.processes,
            "machine": machine.describe(),
            "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if self.kind == "rate":
            found["burstiness"] = str(options.burstiness)
        return {name: value for name, value in found.items() if value != ""}

    def _words(self) -> str:
        options = self.options
        if not options.trace:
            prompt, output = options.prompt_tokens, options.output_tokens
            return (
                f"{options.requests} prompts of {prompt.least} to {prompt.most} random tokens, "
                f"{options.prefix} of them shared; answers of {output.least} to {output.most}"
            )
        words = f"{options.trace.name}, the first {len(self.lines)} requests; "
        words += f"prompts {options.length:g} times as long, answers {options.output:g} times"
        for cap, what in ((options.prompt_cap, "prompts"), (options.output_cap, "answers")):
            words += f"; {what} cut at {cap}" if cap else ""
        left_out = len(self.lines) - len(self.requests("speed", 1.0, 0))
        return words + (f"; {left_out} longer than {options.longest} left out" * (left_out > 0))


async def serve(asked: Asked, senders: Senders, out: Writer, console: Console) -> None:
    """Every level in turn. Raises groups as Senders.run, TraceError, ValueError."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"))
    shown = (TextColumn("{task.description}"), *columns, TimeElapsedColumn())
    with Progress(*shown, console=console, disable=not console.is_terminal) as progress:

        def bar(name: str, total: int) -> Callable[[bool], None]:
            task, failed = progress.add_task(name, total=total, failed=0), 0

            def tell(good: bool) -> None:
                nonlocal failed
                failed += not good
                progress.update(task, advance=1, failed=failed)

            return tell

        if count := asked.options.warmup:
            first = asked.requests("concurrency", 1.0, asked.options.seed)[:count]
            level = Level("", "concurrency", 1.0)
            with closing(Writer(Path(os.devnull), {})) as nowhere:
                await senders.run(level, first, nowhere, bar("warming up", len(first)))
        for level, requests in asked.levels():
            await senders.run(level, requests, out, bar(level.label, len(requests)))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a request failed, 2 where the run could not be made."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    console = Console()
    path = options.raw or Path(f"serve-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    senders = Senders(
        endpoint=_endpoint(options),
        processes=options.processes,
        timeout=options.timeout,
        cluster=options.cluster,
    )
    try:
        lines = trace.read(options.trace, options.requests) if options.trace else []
        asked = Asked(options, lines)
        with closing(Writer(path, asked.params(senders.endpoint))) as out:
            asyncio.run(serve(asked, senders, out, console))
        console.print(f"raw: {path}")
        return report.report(raw.read(path), options, console)
    except* (OSError, TraceError, ValueError, SenderFailed, aiohttp.ClientError) as group:
        for error in _leaves(group):
            print(f"bench.serve: {error}", file=sys.stderr)
    return 2


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in group.exceptions:
        yield from _leaves(one) if isinstance(one, BaseExceptionGroup) else (one,)


def _endpoint(options: argparse.Namespace) -> Endpoint:
    extra = dict(options.extra_body)
    if options.ignore_eos:
        extra["ignore_eos"] = True
    return Endpoint(
        url=options.url,
        model=options.model,
        chat=options.api == "chat",
        words=options.prompts == "words",
        key=os.environ.get("OPENAI_API_KEY"),
        sessions=options.sessions,
        extra=extra,
    )


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where options do not go together."""
    given = [kind for kind in _LABELS if getattr(options, kind) is not None]
    if len(given) > 1:
        parser.error(f"--{given[0]} and --{given[1]} are two kinds of load: give one")
    if options.trace is None and (not given or given == ["speed"]):
        parser.error("give --rate, --concurrency or --trace")
    if options.api == "chat" and options.prompts == "ids":
        parser.error("--prompts ids needs --api completions: chat has words alone")
    if any(value != int(value) for value in options.concurrency or ()):
        parser.error("--concurrency is a whole number of requests")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _endpoint_options(parser)
    _load_options(parser)
    _trace_options(parser)
    report.add_options(parser)
    return parser


def _endpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("endpoint").add_argument
    add("--url", default="http://127.0.0.1:8000", help="without /v1 (default: %(default)s)")
    add("--model", required=True, help="as the endpoint calls it")
    add("--api", choices=("completions", "chat"), default="completions")
    add("--prompts", choices=("ids", "words"), help="default: ids; for chat words, a letter each")
    add("--ignore-eos", action="store_true", help="answers are as long as asked (an extension)")
    add("--extra-body", type=_object, default={}, metavar="JSON", help="fields of every request")
    add("--timeout", type=positive, default=300.0, metavar="S", help="(default: %(default)g)")
    add("--cluster", metavar="URL", help="of a Baton gateway's /cluster: workers' imbalance, too")
    add("--sessions", action="store_true", help="name a trace's conversations in x-baton-session")


def _load_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--rate", type=_numbers, metavar="R,...", help="requests per second, open loop")
    add("--concurrency", type=_numbers, metavar="N,...", help="requests at once, closed loop")
    add("--speed", type=_numbers, metavar="F,...", help="a trace's time, so many times as fast")
    add("--burstiness", type=positive, default=1.0, metavar="SHAPE", help=_BURSTINESS)
    add("--requests", type=_count, default=200, help="of each level (default: %(default)s)")
    add("--prompt-tokens", type=Lengths.parse, default="64:512", help="(default: %(default)s)")
    add("--output-tokens", type=Lengths.parse, default="64", help="(default: %(default)s)")
    add("--prefix", type=at_least(0), default=0, metavar="N", help="prompt tokens that all share")
    add("--vocabulary", type=_count, default=256, help="ids are below this (default: %(default)s)")
    add("--seed", type=int, default=0)
    add(
        "--warmup",
        type=at_least(0),
        default=0,
        metavar="N",
        help="requests before, that do not count",
    )
    add("--processes", type=_count, default=1, help="that send (default: %(default)s)")
    add("--raw", type=Path, metavar="FILE", help="what was seen (default: serve-DATE.jsonl)")
    add("--label", default="", help="what is compared: goes into the raw file")


_BURSTINESS = "of --rate: 1 is Poisson, less is burstier (Gamma), inf is steady (default: 1)"


def _trace_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("trace").add_argument
    add("--trace", type=Path, metavar="FILE", help="Mooncake's JSONL; Azure's, BurstGPT's CSV")
    add("--length", type=positive, default=1.0, metavar="F", help="prompts, times as long")
    add("--output", type=positive, default=1.0, metavar="F", help="answers, times as long")
    add("--prompt-cap", type=_count, metavar="N", help="cut prompts at so many tokens")
    add("--output-cap", type=_count, metavar="N", help="cut answers likewise")
    add("--longest", type=_count, default=2**20, metavar="N", help="leave out longer prompts")
    add("--block-size", type=_count, default=16, help="of the endpoint's cache, for reusable")


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _numbers(text: str) -> list[float]:
    found = [positive(one) for one in text.split(",")]
    if any(map(math.isinf, found)):
        raise argparse.ArgumentTypeError("a load has an end")
    return found


def _object(text: str) -> dict[str, workload.Json]:
    said = json.loads(text)
    if not isinstance(said, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return said


if __name__ == "__main__":
    sys.exit(main())
