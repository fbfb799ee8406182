"""Traces of conversations, as Mooncake publishes them, and the requests made of them.

A trace is a file of JSON lines, each a request in order of arrival:

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}

``timestamp`` is in milliseconds (in steps of 3,000: requests of one step are spread over it here),
lengths are in tokens, and ``hash_ids`` has an id for each block of 512 prompt tokens, the last one
not full: requests whose ids begin alike begin with the same tokens
(kvcache-ai/Mooncake, FAST25-release/traces).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

from baton.prefix_keys import PrefixKeys

#: Tokens of a trace's block.
BLOCK = 512
#: Milliseconds.
STEP = 3000


class TraceError(ValueError):
    """A line is no request; says which, and why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the trace, as it is there."""

    timestamp: float  #: milliseconds
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What becomes of a trace."""

    length: int  #: prompts are so many times as short; a divisor of BLOCK
    output: int  #: answers likewise; at least one token remains
    speed: float  #: time passes so many times as fast
    vocabulary: int  #: ids are below this


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and when."""

    at: float  #: seconds from the first
    prompt: tuple[int, ...]
    max_tokens: int
    conversation: int  #: the same for those whose second block is; the first is everybody's


def read(path: Path, count: int) -> list[Line]:
    """The first ``count`` lines. Raises TraceError, OSError."""
    with path.open(encoding="utf-8") as lines:
        return [_line(number, text) for number, text in enumerate(islice(lines, count), start=1)]


def _line(number: int, text: str) -> Line:
    try:
        said = json.loads(text)
        ids = tuple(int(one) for one in said["hash_ids"])
        line = Line(
            float(said["timestamp"]), int(said["input_length"]), int(said["output_length"]), ids
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"line {number} is no request: {error!r}") from None
    if -(-line.input_length // BLOCK) != len(ids):
        raise TraceError(
            f"line {number} has {len(ids)} hash_ids for {line.input_length} tokens, but a block "
            f"has {BLOCK}"
        )
    return line


def requests(lines: Sequence[Line], scale: Scale) -> Iterator[Request]:
    """In order. The tokens of a block are a function of its id, so runs can be compared."""
    size, began = BLOCK // scale.length, lines[0].timestamp if lines else 0.0
    for timestamp, step in groupby(lines, key=lambda line: line.timestamp):
        together = list(step)
        for number, line in enumerate(together):
            after = timestamp - began + STEP * number / len(together)
            ids = [t for one in line.hash_ids for t in _tokens(one, size, scale.vocabulary)]
            yield Request(
                after / 1e3 / scale.speed,
                tuple(ids[: max(1, line.input_length // scale.length)]),
                max(1, line.output_length // scale.output),
                line.hash_ids[min(1, len(line.hash_ids) - 1)],
            )


@lru_cache(maxsize=65_536)
def _tokens(hash_id: int, count: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(random.Random(hash_id).choices(range(vocabulary), k=count))


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
