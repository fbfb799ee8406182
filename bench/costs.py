"""What one worker's compute and network cost: a file of JSON, fitted from measurement.

    {"machine": "...", "model": "...",
     "step_s": 0.0089, "prefill_token_s": 5.4e-4, "prefill_pair_s": 1.1e-7,
     "decode_s": 6e-4, "context_token_s": 1.4e-6, "token_bytes": 23040,
     "bytes_per_s": 8e9, "transfer_s": 0.001, "hop_s": 0.0005, "request_s": 0.002}

A step takes

    step_s + prefill_token_s * n + prefill_pair_s * (pairs of a new token and one before it)
           + decode_s * sequences + context_token_s * (tokens that these sequences read back)

with n prompt tokens. Workers of one machine slow each other down: for each other one that computes
it takes longer by a share of itself, ``prompt_beside`` with prompt tokens, else ``decode_beside``.
Absent fields are 0: they cost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


class CostsError(ValueError):
    """A file is none of costs; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All in seconds and bytes. Raises CostsError for a negative one."""

    machine: str = ""  #: on which it was measured, for people
    model: str = ""
    step_s: float = 0.0  #: per engine step
    prefill_token_s: float = 0.0
    prefill_pair_s: float = 0.0  #: per prompt token and token before it: attention
    decode_s: float = 0.0  #: per sequence in a step
    context_token_s: float = 0.0  #: per token that a decoding sequence reads back, in a step
    prompt_beside: float = 0.0  #: share by which a neighbour makes a step with prompt tokens longer
    decode_beside: float = 0.0  #: likewise, a step without
    token_bytes: int = 0  #: KV of one token, all layers
    bytes_per_s: float = 0.0  #: of a worker's network; 0: at once
    transfer_s: float = 0.0  #: what every hand-off takes beside its bytes
    hop_s: float = 0.0  #: a message from process to process
    request_s: float = 0.0  #: from the client until the gateway has tokens to place

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) and not value >= 0:
                raise CostsError(f"{name} is {value}, but must be at least 0")

    def with_network(self, bytes_per_s: float) -> Costs:
        """The same workers at another network."""
        return replace(self, bytes_per_s=bytes_per_s)


def read(path: Path) -> Costs:
    """Raises CostsError, OSError."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(said) - {field.name for field in fields(Costs)}
        if unknown:
            raise CostsError(f"{path}: nothing is called {', '.join(sorted(unknown))}")
        return Costs(**said)
    except (TypeError, json.JSONDecodeError) as error:
        raise CostsError(f"{path} is no file of costs: {error}") from None


def write(path: Path, costs: Costs) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(asdict(costs), indent=1) + "\n", encoding="utf-8")


def fit_decode(measured: Iterable[tuple[int, int, float]]) -> tuple[float, float, float]:
    """``step_s``, ``decode_s`` and ``context_token_s`` of (sequences, context of each, seconds of
    a step), by least squares of relative errors. Raises ValueError for fewer than three."""
    points = list(measured)
    a, b, c = _fit([(1.0, n, n * context) for n, context, _ in points], [s for *_, s in points])
    return a, b, c


def fit_prefill(measured: Iterable[tuple[int, float]]) -> tuple[float, float]:
    """``prefill_token_s`` and ``prefill_pair_s`` of (tokens of a prompt, seconds), likewise."""
    points = list(measured)
    a, b = _fit([(n, n * (n - 1) / 2) for n, _ in points], [s for _, s in points])
    return a, b


def _fit(terms: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> list[float]:
    """Coefficients that are not negative: a term that would be is left out."""
    matrix: F64 = np.array(terms, dtype=np.float64)
    if len(matrix) < matrix.shape[1]:
        raise ValueError(f"{len(matrix)} measurements do not tell {matrix.shape[1]} costs")
    weighted: F64 = matrix / np.array(seconds)[:, None]
    kept = list(range(matrix.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(weighted[:, kept], np.ones(len(matrix)), rcond=None)
        if (found >= 0).all():
            break
        kept = [term for term, value in zip(kept, found, strict=True) if value >= 0]
    values = dict(zip(kept, found.tolist(), strict=True))
    return [values.get(term, 0.0) for term in range(matrix.shape[1])]
