"""When tokens are made: steps at even distances, and a file that says when each was."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_letters, digits
from typing import Protocol

#: What tokens read: one character each, in every byte-level vocabulary, none that JSON escapes.
LETTERS = digits + ascii_letters
#: Seconds between looks while there is nothing to do yet.
_LOOK = 0.01


class Clock:
    """A file of float64: the seconds between two steps of a group, then the time of the last step
    with each letter (``time.monotonic``, the same for all processes of a machine)."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * (1 + len(LETTERS))))
        with path.open("r+b") as file:
            self._values = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    @property
    def interval(self) -> float:
        """0: nobody steps."""
        return self._values[0]

    @interval.setter
    def interval(self, seconds: float) -> None:
        self._values[0] = seconds

    def stamp(self, letter: str) -> None:
        """Tokens that read so are sent now."""
        self._values[1 + LETTERS.index(letter)] = time.monotonic()

    def sent(self, letter: str) -> float:
        """When that letter was last sent. Right as long as it is on its way for fewer steps than
        there are letters."""
        return self._values[1 + LETTERS.index(letter)]


class Group(Protocol):
    """Sequences that step together."""

    def step(self, letter: str) -> Callable[[], None]:
        """Make a token for each; what is returned sends them."""
        ...


async def run(clock: Clock, groups: Sequence[Group]) -> None:
    """Let the groups step in turn, each once per interval, for ever. Who is late skips."""
    due = time.monotonic()
    for number in itertools.count():
        due = max(due + (clock.interval or _LOOK) / len(groups), time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        if not clock.interval:
            continue
        letter = LETTERS[number % len(LETTERS)]
        send = groups[number % len(groups)].step(letter)
        clock.stamp(letter)
        send()
