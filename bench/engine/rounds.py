"""Every side at every case, in turn, round after round, so that a busy moment meets them all.

A first round is not counted. Values are medians over the rounds; a ratio is the median of each
round's own ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import cores
from bench.engine.cost import Case, work
from bench.engine.serve import Answer, Setup
from bench.engine.sides import HARDWARE, OURS, PEERS, SideProcess, sides, weight_bits
from bench.records import Param, Record
from bench.shapes import ModelShape, checkpoint
from bench.usage import available_bytes

_GIGA = 1e9
#: Short prompts are computed several times in a round, until they are so many tokens together.
_TOKENS_A_ROUND = 1024
#: Tokens that a peer's first sequences generate while it computes the contexts of the others.
_SPARE = 256
#: What bounds a phase, in what hardware.py calls it, and what that is called in the tables.
LIMITS = {"prefill": ("matrix", "matrix rate", "GFLOP/s"), "decode": ("read", "bandwidth", "GB/s")}


@dataclass(frozen=True, slots=True)
class Load:
    """What to measure."""

    shape: ModelShape
    sides: Sequence[str]
    cases: Sequence[Case]
    rounds: int
    steps: int  #: decode steps that each side takes in a round
    vllm_python: Path | None = None

    def setup(self, threads: int) -> Setup:
        """Room for every case. Raises ValueError for more threads than cores."""
        room = self.steps * (self.rounds + 2) + _SPARE
        sequences = [(case.batch, case.tokens + room) for case in self.cases]
        return Setup(
            model=str(checkpoint(self.shape)),
            cores=cores.first(threads),
            batch=max(batch for batch, _ in sequences),
            tokens=max(tokens for _, tokens in sequences),
            pool_tokens=max(batch * tokens for batch, tokens in sequences),
        )


@dataclass(frozen=True, slots=True)
class Series:
    """The counted rounds of one case."""

    case: Case
    seconds: Mapping[str, Sequence[float]]  #: by side, of a prompt or a step
    limits: Sequence[Answer]  #: what the hardware did, in each round, by way


async def measure(load: Load, threads: int, say: Callable[[str], None]) -> list[Series]:
    """Every case with so many threads. Raises PeerFailed, and ValueError for more threads than
    cores, or where there is too little memory for all sides at once."""
    setup = load.setup(threads)
    kv_bytes = setup.pool_tokens * load.shape.token_bytes
    names = (HARDWARE, *load.sides)
    _require_memory(load.sides, setup, kv_bytes)
    say(f"starting {', '.join(names)} with {threads} threads")
    async with sides(names, setup, kv_bytes, load.vllm_python) as started:
        hardware = started.pop(HARDWARE)
        found = []
        for case in load.cases:
            say(f"{case}, {threads} threads")
            found.append(await _series(case, started, hardware, load))
        return found


def _require_memory(sides: Sequence[str], setup: Setup, kv_bytes: int) -> None:
    """A machine that swaps, or ends processes, measures nothing."""
    weights = (Path(setup.model) / "model.safetensors").stat().st_size
    needed, there = len(sides) * (kv_bytes + weights), available_bytes()
    if needed > there:
        raise ValueError(
            f"{len(sides)} sides with {kv_bytes / 2**30:.1f} GiB of KV each need at least "
            f"{needed / 2**30:.0f} GiB, but {there / 2**30:.0f} are free: fewer --sides, or a "
            "smaller --batch or --context, need less"
        )


async def _series(
    case: Case, started: Mapping[str, SideProcess], hardware: SideProcess, load: Load
) -> Series:
    seconds: dict[str, list[float]] = {name: [] for name in started}
    limits: list[Answer] = []
    if case.phase == "decode":
        for side in started.values():
            await side.ask(do="prepare", batch=case.batch, context=case.tokens)
    for _ in range(load.rounds + 1):
        limits.append(await hardware.ask(do=LIMITS[case.phase][0]))
        for name, side in started.items():
            if case.phase == "decode":
                took = await side.seconds(do="decode", steps=load.steps)
            else:
                times = max(1, _TOKENS_A_ROUND // case.tokens)
                took = await side.seconds(do="prefill", tokens=case.tokens, times=times)
            seconds[name].append(took)
    if case.phase == "decode":
        for side in started.values():
            await side.ask(do="clear")
    return Series(case, {name: every[1:] for name, every in seconds.items()}, limits[1:])


def evaluate(shape: ModelShape, threads: int, series: Series) -> list[Record]:
    """The records of one case: a line for each side."""
    case, found = series.case, list[Record]()
    _, limit, _ = LIMITS[case.phase]
    best = [max(ways.values()) * _GIGA for ways in series.limits]
    for side, seconds in series.seconds.items():
        params: dict[str, Param] = {"threads": threads, "side": side, **_where(case)}

        def add(name: str, value: float, unit: str, params: dict[str, Param] = params) -> None:
            found.append(Record(name, value, unit, params))

        own = work(shape, case, weight_bits(side))
        did = own.flops if case.phase == "prefill" else own.nbytes
        add(f"{case.phase} time", median(seconds) * 1e3, "ms")
        add(case.phase, case.computed / median(seconds), "tokens/s")
        for peer in PEERS:
            if side in OURS and peer in series.seconds:
                pairs = zip(series.seconds[peer], seconds, strict=True)
                ratio = median(theirs / ours for theirs, ours in pairs)
                add(f"{case.phase} / {peer}", ratio, "ratio")
        shares = (did / took / most for took, most in zip(seconds, best, strict=True))
        add(f"{case.phase} of {limit}", median(shares), "ratio")
        add("rate", own.flops / median(seconds) / _GIGA, "GFLOP/s")
        add("intensity", own.intensity, "FLOP/byte")
    return found


def limits(threads: int, found: Sequence[Series]) -> list[Record]:
    """What the hardware did, over all rounds of all cases."""
    records: list[Record] = []
    for phase, (_, name, unit) in LIMITS.items():
        answers = [one for series in found if series.case.phase == phase for one in series.limits]
        for way in answers[0] if answers else ():
            params: dict[str, Param] = {"threads": threads, "by": way}
            records.append(Record(name, median(one[way] for one in answers), unit, params))
    return records


def _where(case: Case) -> dict[str, Param]:
    if case.phase == "prefill":
        return {"tokens": case.tokens}
    return {"batch": case.batch, "context": case.tokens}
