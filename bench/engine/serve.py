"""What every measured side has in common: a process that is told on stdin what to time.

A line of JSON comes, a line of JSON answers, the first one ({}) when it is ready:

    {"do": "prefill", "tokens", "times"}    {"seconds"}     of one prompt, to its first token
    {"do": "prepare", "batch", "context"}   {}              sequences that are about to decode
    {"do": "decode", "steps"}               {"seconds"}     of one step of all of them
    {"do": "clear"}                         {}              they are gone

It ends with stdin, so never outlives its parent. Standard library only: peers run it with an
interpreter of their own.
"""

from __future__ import annotations

import json
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

Answer = dict[str, float]
Command = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one side is started with."""

    model: str  #: directory of the checkpoint
    cores: list[int]  #: a thread for each
    batch: int  #: sequences at once, at most
    tokens: int  #: of the longest sequence, prompt and answer
    pool_tokens: int  #: of all sequences together
    quantize: str | None = None
    deterministic: bool = False

    @property
    def threads(self) -> int:
        return len(self.cores)


class Side(Protocol):
    """Whatever answers."""

    def do(self, command: Command) -> Answer: ...


class Generator(ABC):
    """A side that generates tokens, greedily, for prompts of random ids that share nothing."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._random = random.Random(0)

    def do(self, command: Command) -> Answer:
        match command:
            case {"do": "prefill", "tokens": int(tokens), "times": int(times)}:
                return {"seconds": median(self.prefill(tokens) for _ in range(times))}
            case {"do": "prepare", "batch": int(batch), "context": int(context)}:
                self.prepare(batch, context)
                return {}
            case {"do": "decode", "steps": int(steps)}:
                return {"seconds": median(self.decode(steps))}
            case {"do": "clear"}:
                self.clear()
                return {}
        raise ValueError(f"no such command: {command}")

    def ids(self, count: int) -> list[int]:
        return self._random.choices(range(self._vocab), k=count)

    @abstractmethod
    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt of so many tokens to the first token of its answer."""

    @abstractmethod
    def prepare(self, batch: int, context: int) -> None:
        """KV of ``batch`` sequences, ``context`` tokens each, is in place."""

    @abstractmethod
    def decode(self, steps: int) -> list[float]:
        """Seconds of each of so many steps of all prepared sequences, or of a few more."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the prepared sequences."""


def serve(open_side: Callable[[Setup], Side]) -> None:
    """Answer until stdin ends. Whatever else is written to stdout goes to stderr instead."""
    setup = Setup(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, setup.cores)  # before anything starts threads
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        side = open_side(setup)
        print("{}", file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(side.do(json.loads(line))), file=out, flush=True)
