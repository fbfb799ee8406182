"""``python -m bench.peers``: Baton and vLLM under the same load, whole systems on the same cores.

Requests have the lengths of a trace, scaled and cut, and arrive at random (Poisson). Each system is
started in turn, and asked at one rate after the other, until far too few answers are within the
objectives. At a rate all of them get the same requests at the same times, by
the same generator (bench.serve), which shares the two cores with whatever is asked, as Baton's
gateway and vLLM's proxy do. Weights are random, in bfloat16: no answer depends on what is in them.

    baton-pd          a prefill and a decode worker, a thread each
    baton-2           two workers that do both, a thread each
    baton-1           one of them, two threads
    vllm              one server, two threads
    vllm-pair         two servers, a thread each, KV by NIXL over UCX's TCP

All have their own defaults.

What was seen is kept in --out, a file for each system and rate; files that are there are not made
again, so that the work can be done in parts, and all of them are told. vLLM wants an environment of
its own (``python -m bench.engine --help`` says how to make one), for the pair with NIXL in it:
``vllm/bin/pip install --no-deps nixl==1.5.1 nixl-cu13==1.5.1``.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import cores, records
from bench.arguments import some_of
from bench.load import raw
from bench.load.raw import RawError
from bench.load.statistics import Measured, Slo, Trust, estimate
from bench.overload import NAME
from bench.pair import PeerFailed
from bench.peers import plot, systems, words
from bench.peers.systems import SYSTEMS, VLLM, VLLM_PAIR, Setup
from bench.peers.tried import Tried, evaluate, highest
from bench.shapes import CACHE, SHAPES

#: What the generator's own lag may be of what is told, and 99 of 100 times at most, seconds.
_TRUST = Trust(share=0.1, lag=0.1)
#: Requests before the first rate, one after the other.
_WARMUP = 4
#: Seconds for a whole answer; one that takes longer has failed.
_PATIENCE = 60.0


def file(asked: argparse.Namespace, system: str, rate: float) -> Path:
    out: Path = asked.out
    return out / f"{system}-{rate:g}.jsonl"


def slo(asked: argparse.Namespace) -> Slo:
    return Slo(ttft=asked.slo_ttft / 1e3, tpot=asked.slo_tpot / 1e3)


def read(asked: argparse.Namespace, system: str, rate: float) -> Tried:
    """Raises RawError, OSError."""
    run = raw.read(file(asked, system, rate))
    [level] = run.levels
    measured = Measured(level)
    load = f"{run.params['workload']}; {run.params['machine']}"
    return Tried(system, rate, load, measured, estimate(measured, slo(asked), _TRUST))


def found(asked: argparse.Namespace) -> Iterator[Tried]:
    """Whatever there is, of the systems and rates asked for."""
    for system in asked.systems:
        for rate in asked.rates:
            if file(asked, system, rate).exists():
                yield read(asked, system, rate)


async def measure(asked: argparse.Namespace, system: str, setup: Setup, console: Console) -> None:
    """The rates that are not there yet. Raises PeerFailed, RawError."""
    left = [rate for rate in asked.rates if not file(asked, system, rate).exists()]
    done = [read(asked, system, rate) for rate in asked.rates if rate not in left]
    hopeless = min((one.rate for one in done if one.attained < asked.stop), default=math.inf)
    if not left or min(left) > hopeless:
        return
    console.print(f"{system} starts")
    async with systems.start(system, setup) as url:
        for number, rate in enumerate(rate for rate in left if rate < hopeless):
            await _serve(asked, system, rate, url, 0 if number else _WARMUP)
            one = read(asked, system, rate)
            console.print(f"{system}, {rate:g} requests/s: {one.attained:.1%} within objectives")
            if one.attained < asked.stop:
                return


async def _serve(
    asked: argparse.Namespace, system: str, rate: float, url: str, warmup: int
) -> None:
    """Raises PeerFailed where it could not be made; a request that fails is an answer, too."""
    path = file(asked, system, rate)
    unfinished = path.with_suffix(".unfinished")
    trace = ("--trace", asked.trace, "--length", asked.length, "--output", asked.output)
    caps = ("--prompt-cap", asked.prompt_cap, "--output-cap", asked.output_cap)
    # No prompt of one rate comes again at another: none is ever cached.
    seed = ("--seed", round(1000 * rate), "--vocabulary", SHAPES[asked.model].vocab)
    load = ("--rate", rate, "--requests", asked.requests, "--warmup", warmup)
    whom = ("--url", url, "--model", NAME, "--label", system, "--timeout", _PATIENCE)
    command = (*whom, *load, *trace, *caps, *seed, "--ignore-eos", "--raw", unfinished)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.serve", *map(str, command)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
    if status not in (0, 1):
        raise PeerFailed(f"{system} could not be asked at {rate:g} requests/s")
    unfinished.rename(path)


def title(asked: argparse.Namespace, tried: Sequence[Tried]) -> str:
    """Of what the figures are. Raises ValueError where files of several loads lie together."""
    loads = list(dict.fromkeys(one.load for one in tried))
    if len(loads) > 1:
        raise ValueError(f"{asked.out} has files of other loads: {loads[0]} and {loads[1]}")
    return (
        f"{SHAPES[asked.model].name}, bfloat16; {''.join(loads)}. Poisson arrivals; TTFT within "
        f"{asked.slo_ttft:g} ms, TPOT within {asked.slo_tpot:g} ms"
    )


def _rates(text: str) -> list[float]:
    given = sorted({float(part) for part in text.split(",")})
    if not all(0 < rate < math.inf for rate in given):
        raise argparse.ArgumentTypeError(f"{text}: rates are above 0, and finite")
    return given


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, metavar="FILE", help="whose lengths are taken")
    add("--systems", type=some_of(SYSTEMS), default=list(SYSTEMS), help="some of those above, a,b")
    add("--rates", type=_rates, default="2,3,4,5,6,7", help="requests/s (default: %(default)s)")
    add("--requests", type=int, default=120, help="at each rate (default: %(default)s)")
    add("--length", type=float, default=0.25, help="prompts, times as long (%(default)g)")
    add("--output", type=float, default=0.25, help="answers, times as long (%(default)g)")
    add("--prompt-cap", type=int, default=1500, help="tokens (default: %(default)s)")
    add("--output-cap", type=int, default=200, help="tokens (default: %(default)s)")
    add("--slo-ttft", type=float, default=1000.0, metavar="MS", help="(default: %(default)g)")
    add("--slo-tpot", type=float, default=80.0, metavar="MS", help="(default: %(default)g)")
    add("--attain", type=float, default=0.9, help="of the requests (default: %(default)g)")
    add("--stop", type=float, default=0.6, help="no higher rate below this (default: %(default)g)")
    add("--model", choices=[*SHAPES], default=next(iter(SHAPES)), help="shape of the model")
    add("--vllm-python", type=Path, metavar="FILE", help="interpreter of vLLM's environment")
    add("--out", type=Path, default=CACHE / "peers", help="what was seen (default: %(default)s)")
    add("--report", action="store_true", help="tell what is there, and measure nothing")
    add("--json", type=Path, metavar="FILE", help="where to write the records")
    add("--plot", type=Path, metavar="FILE", help="where to draw attainment over rate")
    asked = parser.parse_args(argv)
    if min(asked.requests, asked.prompt_cap, asked.output_cap) < 1:
        parser.error("--requests and both caps are at least 1")
    if not asked.report and {VLLM, VLLM_PAIR} & {*asked.systems} and asked.vllm_python is None:
        parser.error("vLLM's need --vllm-python; --systems leaves them out")
    return asked


async def _measure(asked: argparse.Namespace, console: Console) -> None:
    task = asyncio.current_task()
    assert task is not None, "it is run as one"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # nothing is left
    asked.out.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        model=words.served(SHAPES[asked.model]),
        longest=asked.prompt_cap + asked.output_cap,
        cores=cores.first(2),
        vllm_python=asked.vllm_python,
        logs=asked.out,
    )
    for system in asked.systems:
        await measure(asked, system, setup, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a system could not be measured."""
    asked, console = _parse(argv), Console(width=180)
    try:
        if not asked.report:
            asyncio.run(_measure(asked, console))
        tried = list(found(asked))
        of = title(asked, tried)
        made = evaluate(tried, asked.attain, of)
        console.print(of, markup=False)
        console.print(records.table("At each rate", [one for one in made if "rate" in one.params]))
        for system, rate in highest(tried, asked.attain).items():
            console.print(f"{system}: held {rate:g} requests/s", markup=False)
        if asked.json is not None:
            records.write(asked.json, made)
        if asked.plot is not None:
            plot.draw(asked.plot, of, tried, slo(asked), asked.attain)
    except asyncio.CancelledError:
        print("bench.peers: stopped", file=sys.stderr)
        return 1
    except (PeerFailed, RawError, ValueError, OSError) as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
