"""``python -m bench.fit``: what a worker costs, from measurements of the engine and of hand-offs.

    python -m bench.engine --json engine.json
    python -m bench.kv --json kv.json
    python -m bench.fit --engine engine.json --kv kv.json --out costs.json

The file (``bench/costs.py`` says what is in it) is what ``baton up --mock --mock-costs`` and the
simulator take for the truth. Beside each measurement stands what the fit says, and how far off.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from baton.settings import WorkerSettings
from bench import costs, records
from bench.costs import Costs
from bench.job import MIB
from bench.records import Param, Record
from bench.shapes import SHAPES

#: Of a prompt, in one step: bench.engine runs with a worker's defaults.
_STEP_TOKENS: int = WorkerSettings.model_fields["max_step_tokens"].default


class NothingMeasured(ValueError):
    """A file has no records of what was asked for; says of what it has some."""


def read(paths: Iterable[Path]) -> list[Record]:
    """Records of all files. Raises OSError and ValueError."""
    try:
        return [Record(**one) for path in paths for one in json.loads(path.read_text())]
    except TypeError as error:
        raise ValueError(f"this is no list of records: {error}") from None


def of_engine(found: Sequence[Record], side: str, threads: int) -> Costs:
    """Compute of that side on so many threads. Raises NothingMeasured, and ValueError when there
    is too little of it to fit."""
    where: Mapping[str, Param] = {"side": side, "threads": threads}
    decodes, prefills = _named("decode time", found, where), _named("prefill time", found, where)
    for name in ("batch", "context"):
        if len({one.params[name] for one in decodes}) < 2:
            raise ValueError(f"steps of one {name} alone do not tell what a step costs")
    step, decode, context = costs.fit_decode(
        (int(one.params["batch"]), int(one.params["context"]), one.value / 1e3) for one in decodes
    )
    token, pair = costs.fit_prefill(_beyond_steps(prefills, step))
    return Costs(
        step_s=step,
        decode_s=decode,
        context_token_s=context,
        prefill_token_s=token,
        prefill_pair_s=pair,
    )


def _beyond_steps(prefills: Iterable[Record], step_s: float) -> Iterator[tuple[int, float]]:
    """Tokens of each prompt, and what it takes beside its steps. Raises ValueError where that is
    nothing."""
    for one in prefills:
        tokens, seconds = int(one.params["tokens"]), one.value / 1e3
        beyond = seconds - step_s * _steps(tokens)
        if beyond <= 0:
            raise ValueError(
                f"a prompt of {tokens} tokens takes {seconds:.3g} s, no longer than the steps that "
                f"it is computed in: {_steps(tokens)} of {step_s:.3g} s"
            )
        yield tokens, beyond


def _steps(tokens: int) -> int:
    """That a prompt is computed in, alone."""
    return -(-tokens // _STEP_TOKENS)


def of_kv(found: Sequence[Record], path: str) -> Costs:
    """The network by that transport. Raises NothingMeasured, and ValueError when only one size was
    measured."""
    rates = _named("throughput", found, {"path": path})
    sizes = np.array([int(one.params["size MiB"]) * MIB for one in rates], dtype=np.float64)
    if len(set(sizes)) < 2:
        raise ValueError("hand-offs of one size do not tell what each takes beside its bytes")
    seconds = sizes / (np.array([one.value for one in rates]) * 1e9)
    byte, fixed = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    if fixed < 0:
        byte, fixed = float(np.mean(seconds / sizes)), 0.0
    return Costs(transfer_s=float(fixed), bytes_per_s=1 / float(byte))


def compared(fitted: Costs, found: Sequence[Record], side: str, threads: int) -> list[Record]:
    """Every measurement of the engine beside what the fit makes of it."""
    shown: list[Record] = []
    where: Mapping[str, Param] = {"side": side, "threads": threads}
    for name in ("decode time", "prefill time"):
        for one in _named(name, found, where):
            said = {key: int(value) for key, value in one.params.items() if key not in where}
            fit = _decode(fitted, **said) if name == "decode time" else _prefill(fitted, **said)
            params: dict[str, Param] = {"of": name, **said}
            shown += [
                Record("measured", one.value, "ms", params),
                Record("fitted", fit * 1e3, "ms", params),
                Record("off", (fit * 1e3 / one.value - 1) * 100, "%", params),
            ]
    return shown


def _decode(fitted: Costs, *, batch: int, context: int) -> float:
    of_each = fitted.decode_s + fitted.context_token_s * context
    return fitted.step_s + batch * of_each


def _prefill(fitted: Costs, *, tokens: int) -> float:
    pairs = tokens * (tokens - 1) / 2
    of_tokens = fitted.prefill_token_s * tokens + fitted.prefill_pair_s * pairs
    return fitted.step_s * _steps(tokens) + of_tokens


def _named(name: str, found: Iterable[Record], where: Mapping[str, Param]) -> list[Record]:
    named = [one for one in found if one.name == name]
    chosen = [one for one in named if where.items() <= one.params.items()]
    if not chosen:
        has = sorted({", ".join(f"{key} {one.params.get(key)}" for key in where) for one in named})
        raise NothingMeasured(
            f"nothing was measured of {name!r} with {dict(where)}; "
            f"there is {'; '.join(has) or 'none'}"
        )
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--engine", type=Path, nargs="+", required=True, help="of bench.engine", metavar="JSON")
    add("--kv", type=Path, nargs="*", default=[], help="of bench.kv; none: at once", metavar="JSON")
    add("--side", default="bf16", help="of bench.engine (default: bf16)")
    add("--threads", type=int, default=1, help="of a worker (default: 1)")
    add("--path", default="shm", help="transport, of bench.kv (default: shm)")
    add("--model", default=next(iter(SHAPES)), choices=SHAPES, help="shape of the model")
    add("--hop-s", type=float, default=0.0, help="a message between processes (default: 0)")
    add("--request-s", type=float, default=0.0, help="gateway, before placement (default: 0)")
    add("--machine", default=platform.processor() or platform.machine(), help="for people")
    add("--out", type=Path, required=True, help="where to write the costs", metavar="FILE")
    asked = parser.parse_args(argv)
    shape = SHAPES[asked.model]
    try:
        measured = read(asked.engine)
        fitted = of_engine(measured, asked.side, asked.threads)
        if asked.kv:
            network = of_kv(read(asked.kv), asked.path)
            fitted = replace(fitted, transfer_s=network.transfer_s, bytes_per_s=network.bytes_per_s)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = f"{asked.model}, {asked.side}, {asked.threads} threads"
    fitted = replace(
        fitted,
        machine=asked.machine,
        model=model,
        token_bytes=shape.token_bytes,
        hop_s=asked.hop_s,
        request_s=asked.request_s,
    )
    costs.write(asked.out, fitted)
    Console().print(
        records.table(str(asked.out), compared(fitted, measured, asked.side, asked.threads))
    )


if __name__ == "__main__":
    main()
