"""Traces of real traffic, as they are published, and the requests made of them.

Three formats, told apart by how a file begins:

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}
    TIMESTAMP,ContextTokens,GeneratedTokens
    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type

- Mooncake's, JSON lines. ``timestamp`` is in milliseconds (in steps of 3,000: requests of one step
  are spread over it here), and ``hash_ids`` has an id for each block of 512 prompt tokens, the last
  one not full: requests whose ids begin alike begin with the same tokens
  (kvcache-ai/Mooncake, FAST25-release/traces).
- Azure's, CSV with dates (Azure/AzurePublicDataset, LLM inference traces of 2023 and 2024).
- BurstGPT's, CSV with seconds (HPMLL/BurstGPT). What failed there has no response tokens.

The last two say nothing of contents: every prompt is new.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby, islice, pairwise
from pathlib import Path

from baton.prefix_keys import PrefixKeys

#: Tokens of a block of Mooncake's.
BLOCK = 512
#: Seconds.
STEP = 3.0


class TraceError(ValueError):
    """A file is no trace, or a line no request, or it cannot be scaled so; says which, and why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the trace, as it is there."""

    at: float  #: seconds from the first
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()  #: empty where the trace has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What becomes of a trace."""

    length: float = 1.0  #: prompts are so many times as long
    output: float = 1.0  #: answers likewise; at least one token remains
    speed: float = 1.0  #: time passes so many times as fast
    prompt_cap: int | None = None  #: prompts end after so many tokens
    output_cap: int | None = None  #: answers likewise
    vocabulary: int = 256  #: ids are below this
    seed: int = 0  #: another one gives other contents

    @property
    def block(self) -> int:
        """Tokens that a block becomes. Raises TraceError where that is no whole number."""
        size = round(BLOCK * self.length)
        if size < 1 or abs(size - BLOCK * self.length) > 1e-6:
            raise TraceError(
                f"a block of {BLOCK} tokens, which prompts share, cannot be made {self.length:g} "
                f"times as long: that is {BLOCK * self.length:g} tokens"
            )
        return size


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and when."""

    at: float  #: seconds from the first
    prompt: tuple[int, ...]
    max_tokens: int
    conversation: int | None = None  #: by its second block: all share the first


def read(path: Path, count: int | None = None) -> list[Line]:
    """The first ``count`` requests, or all, in order of arrival. Raises TraceError, OSError."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        lines = list(islice(_mooncake(file) if first.startswith("{") else _table(file), count))
    for number, (before, line) in enumerate(pairwise(lines), start=2):
        if line.at < before.at:
            raise TraceError(f"request {number} came before request {number - 1}")
    began = lines[0].at if lines else 0.0
    return [
        Line(line.at - began, line.input_length, line.output_length, line.hash_ids)
        for line in _spread(lines)
    ]


def _mooncake(lines: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(lines, start=1):
        try:
            said = json.loads(text)
            ids = tuple(int(one) for one in said["hash_ids"])
            at = float(said["timestamp"]) / 1e3
            line = Line(at, int(said["input_length"]), int(said["output_length"]), ids)
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"line {number} is no request: {error!r}") from None
        if -(-line.input_length // BLOCK) != len(ids):
            raise TraceError(
                f"line {number} has {len(ids)} hash_ids for {line.input_length} tokens, but a "
                f"block has {BLOCK}"
            )
        yield line


def _spread(lines: Sequence[Line]) -> Iterator[Line]:
    """Those of one of Mooncake's steps, evenly over it."""
    for at, step in groupby(lines, key=lambda line: line.at):
        together = list(step)
        for number, line in enumerate(together):
            after = STEP * number / len(together) if line.hash_ids else 0.0
            yield Line(at + after, line.input_length, line.output_length, line.hash_ids)


def _date(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


#: Columns of arrival, prompt and answer, and how an arrival is read as seconds.
_TABLES: dict[tuple[str, str, str], Callable[[str], float]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _date,
    ("Timestamp", "Request tokens", "Response tokens"): float,
}


def _table(lines: Iterable[str]) -> Iterator[Line]:
    rows = csv.DictReader(lines)
    named = rows.fieldnames or ()
    columns = next((known for known in _TABLES if set(known) <= set(named)), None)
    if columns is None:
        wanted = " or ".join(", ".join(known) for known in _TABLES)
        raise TraceError(f"the columns are {', '.join(named) or 'none'}; wanted are {wanted}")
    when, prompt, answer = columns
    for row in rows:
        try:
            yield Line(_TABLES[columns](row[when]), int(row[prompt]), int(row[answer]))
        except (ValueError, TypeError) as error:
            raise TraceError(f"line {rows.line_num} is no request: {error!r}") from None


def requests(lines: Iterable[Line], scale: Scale) -> Iterator[Request]:
    """In order. The tokens of a block are a function of its id and the seed, so runs can be
    compared. Raises TraceError where blocks cannot be scaled so."""
    for number, line in enumerate(lines):
        length = max(1, round(line.input_length * scale.length))
        if scale.prompt_cap is not None:
            length = min(length, scale.prompt_cap)
        output = max(1, round(line.output_length * scale.output))
        if scale.output_cap is not None:
            output = min(output, scale.output_cap)
        yield Request(
            line.at / scale.speed, _prompt(line, number, length, scale), output, _whose(line)
        )


def _prompt(line: Line, number: int, length: int, scale: Scale) -> tuple[int, ...]:
    if not line.hash_ids:
        return tokens(f"{scale.seed}, request {number}", length, scale.vocabulary)
    ids = [
        token
        for block in line.hash_ids[: -(-length // scale.block)]
        for token in _block(f"{scale.seed}, block {block}", scale.block, scale.vocabulary)
    ]
    return tuple(ids[:length])


def _whose(line: Line) -> int | None:
    return line.hash_ids[min(1, len(line.hash_ids) - 1)] if line.hash_ids else None


def tokens(seed: str, count: int, vocabulary: int) -> tuple[int, ...]:
    """So many ids below ``vocabulary``, a function of the seed."""
    return tuple(random.Random(seed).choices(range(vocabulary), k=count))


_block = lru_cache(maxsize=65_536)(tokens)


def most_reusable(asked: Iterable[Request], block: int) -> float:
    """The share of prompt tokens that one cache for all, without an end, would have had, in blocks
    of so many tokens."""
    keys, seen, found, total = PrefixKeys("", block), set[bytes](), 0, 0
    for request in asked:
        total += len(request.prompt)
        for key in keys.keys(keys.root(b""), request.prompt[:-1]):
            found += block * (key in seen)
            seen.add(key)
    return found / total if total else 0.0
