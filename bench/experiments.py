"""``python -m bench.experiments NAME``: an experiment as one command.

Runs the benchmark that it is, and leaves NAME.json (what was measured, on which machine, when, by
which command) and NAME.png beside bench/results/README.md, which says what they show. Traces are
not part of this repository: --traces says where Mooncake's conversation trace and Azure's of 2023
are (bench/trace.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import fit, machine, picture
from bench.records import Record

RESULTS = Path(__file__).parent / "results"
_AZURE, _MOONCAKE = "azure_llm_2023_conv.csv", "mooncake_conversation.jsonl"


@dataclass(frozen=True, slots=True)
class Shown:
    """A pane: a number over a parameter, by another."""

    name: str
    over: str
    by: str = ""
    log: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """A benchmark and its options; ``panes`` where it does not draw itself."""

    title: str
    command: tuple[str, ...]
    trace: str = ""
    panes: tuple[Shown, ...] = ()


EXPERIMENTS = {
    "agreement": Experiment("the simulator beside mock workers", ("bench.agree",)),
    "agreement-engines": Experiment(
        "the simulator beside engines",
        (
            *("bench.agree", "--engines", "--costs", str(RESULTS / "costs-cpu.json")),
            *("--fleets", "1:1", "--rates", "1", "2", "3", "--prompt", "64:192"),
            *("--output", "16:48", "--slo-ttft", "300", "--slo-tpot", "20"),
        ),
    ),
    "splits": Experiment("P:D ratios: what 4 mock workers serve in time", ("bench.splits",)),
    "transports": Experiment(
        "KV from process to process",
        ("bench.kv", "--only", "transports", "--sizes", "4,16,64,256", "--token-sizes", "128"),
        panes=(
            Shown("throughput", "size MiB", "path"),
            Shown("sender CPU", "size MiB", "path"),
            Shown("receiver CPU", "size MiB", "path"),
        ),
    ),
    "placement": Experiment(
        "prefix-aware placement",
        (
            *("bench.sweep", "placement", "least-queued", "two-choices", "affinity", "prefix"),
            *("score", "--prefill", "6", "--decode", "2", "--requests", "1000"),
            *("--length-scale", "0.0625", "--output-scale", "0.0625", "--slo-ttft", "2000"),
            *("--rates", "3", "5", "7"),
        ),
        trace=_MOONCAKE,
    ),
    "threshold": Experiment(
        "conditional disaggregation",
        (
            *("bench.sweep", "local_prefill_queue", "0", "64", "256", "1024", "4096"),
            *("--prefill", "2", "--decode", "2", "--requests", "2000", "--burstiness", "1"),
            *("--length-scale", "0.25", "--output-scale", "0.25", "--slo-ttft", "500"),
            *("--slo-tpot", "40", "--itl-target-ms", "30", "--rates", "4", "6", "8", "10", "12"),
        ),
        trace=_AZURE,
    ),
    "overload": Experiment(
        "more load than there is capacity",
        ("bench.overload",),
        panes=(
            Shown("goodput", "offered, of capacity"),
            Shown("refused", "offered, of capacity"),
            Shown("late", "offered, of capacity"),
            Shown("refusal, p99", "offered, of capacity"),
            Shown("queue", "offered, of capacity"),
            Shown("resident", "offered, of capacity"),
        ),
    ),
    "failures": Experiment(
        "workers that die, freeze or are cut off: seconds that clients wait",
        ("bench.recovery",),
        panes=(Shown("p50", "fault", "of"), Shown("longest", "fault", "of"),
               Shown("goal", "fault", "of")),
    ),
}  # fmt: skip


def run(name: str, traces: Path | None, out: Path) -> int:
    """The benchmark's own exit status: 1 where a goal is missed. Raises ValueError without the
    trace that it needs, and where it leaves no records."""
    experiment = EXPERIMENTS[name]
    command = [*experiment.command]
    if experiment.trace:
        if traces is None:
            raise ValueError(f"{name} needs {experiment.trace}: --traces says where it is")
        command += ["--trace", str(traces / experiment.trace)]
    plot = out / f"{name}.png"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        given = [*command, "--json", str(path)]
        if not experiment.panes:
            given += ["--plot", str(plot)]
        began = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *given], check=False).returncode
        took = time.monotonic() - began
        if not path.exists():
            raise ValueError(f"{command[0]} ended with {status} and left no records")
        found = fit.read([path])
    if experiment.panes:
        panes = [
            picture.pane(found, one.name, one.over, one.by, log=one.log) for one in experiment.panes
        ]
        picture.draw(plot, experiment.title, panes)
    _store(out / f"{name}.json", command, took, found)
    return status


def _store(path: Path, command: Sequence[str], took: float, found: Sequence[Record]) -> None:
    root = f"{Path(__file__).parents[1]}/"
    shown = [Path(word).name if word.startswith("/") and root not in word else word
             for word in command]  # fmt: skip
    said = {
        "command": "python -m " + " ".join(shown).replace(root, ""),
        "machine": machine.describe(),
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "took, s": round(took),
        "records": [
            {"name": one.name, "value": one.value, "unit": one.unit, **one.params} for one in found
        ],
    }
    path.write_text(json.dumps(said, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for what cannot be run, 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS], metavar="NAME",
                        help=", ".join(EXPERIMENTS))  # fmt: skip
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="(bench/results)")
    asked = parser.parse_args(argv)
    try:
        return max(run(name, asked.traces, asked.out) for name in asked.names)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
