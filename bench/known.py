"""``python -m bench.known``: the load generator's own error.

bench.serve asks an endpoint whose delays are known (bench/load/endpoint.py), and what it says is
held against what they were: the same percentiles of the same requests. What the generator's own lag
may have changed by more than that is refused, as bench.serve would, and has no error.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from bench import records, serve
from bench.load import raw
from bench.load.endpoint import FIRST, GAP
from bench.load.raw import Level
from bench.load.statistics import Measured, Sample, Slo, Trust, estimate
from bench.records import Param, Record

_PROMPT, _OUTPUT = "150:450", "20:40"


@contextmanager
def endpoint() -> Iterator[str]:
    """The URL of a process of its own."""
    command = [sys.executable, "-m", "bench.load.endpoint"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


def known(level: Level) -> dict[str, Sample]:
    """By latency: what it was, by what was asked."""
    prompts = np.array([one.prompt or 0 for one in level.answers])
    tokens = np.array([one.tokens for one in level.answers])
    each = np.arange(len(tokens))
    gaps = GAP * tokens
    return {
        "TTFT": Sample(FIRST * prompts, each),
        "TPOT": Sample(gaps, each),
        "ITL": Sample(np.repeat(gaps, tokens - 1), np.repeat(each, tokens - 1)),
        "E2E": Sample(FIRST * prompts + (tokens - 1) * gaps, each),
    }


def compare(level: Level, within: float) -> list[Record]:
    """Known and measured, in milliseconds, and how far they are apart where it is told.

    Half of what it may be off is left to the endpoint, whose loop is late as often.
    """
    found: list[Record] = []
    were, measured = known(level), Measured(level)
    told = estimate(measured, Slo(), Trust(share=within / 2, lag=math.inf))
    for one in told:
        latency, _, percentile = one.name.partition(" p")
        if latency not in were or not percentile:
            continue
        params: dict[str, Param] = {"of": one.name}
        was = float(were[latency].quantiles([int(percentile) / 100])[0]) * 1e3
        found.append(Record("known", was, "ms", params))
        if one.doubt:
            found.append(Record("refused", one.value, "ms", params))
            continue
        found.append(Record("measured", one.value, "ms", params))
        found.append(Record("error", abs(one.value / was - 1), "ratio", params))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a percentile is further off than it may be, or none is told, 2 where the
    run failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.known", description=__doc__)
    parser.add_argument("--rate", default="10", help="requests per second (default: %(default)s)")
    parser.add_argument("--requests", default="200", help="(default: %(default)s)")
    parser.add_argument("--processes", default="1", help="that send (default: %(default)s)")
    parser.add_argument(
        "--within", type=float, default=0.02, help="error that passes (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="store what was measured")
    options = parser.parse_args(argv)
    with TemporaryDirectory() as folder, endpoint() as url:
        path = Path(folder) / "raw.jsonl"
        load = ["--rate", options.rate, "--requests", options.requests]
        load += ["--prompt-tokens", _PROMPT, "--output-tokens", _OUTPUT]
        load += ["--processes", options.processes, "--raw", str(path)]
        if serve.main(["--url", url, "--model", "known", *load]) != 0:
            return 2
        found = compare(raw.read(path).levels[0], options.within)
    title = f"{options.requests} requests, {options.rate} a second, {options.processes} senders"
    Console().print(records.table(title, found))
    if options.json is not None:
        records.write(options.json, found)
    errors = [one.value for one in found if one.name == "error"]
    if not errors:
        print("nothing could be told: this machine is too busy")
        return 1
    print(f"largest error of the {len(errors)} that are told: {max(errors):.2%}")
    return 0 if max(errors) <= options.within else 1


if __name__ == "__main__":
    sys.exit(main())
