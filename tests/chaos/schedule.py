"""Which fault befalls whom, when and for how long: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tests.chaos.faults import KINDS

#: Seconds: between faults on average and at least, and how long one lasts.
MEAN_PAUSE, LEAST_PAUSE = 1.5, 0.2
SHORTEST, LONGEST = 0.5, 6.0
#: What a killed process takes to be itself again. If it takes longer, the next fault waits.
RECOVERY = 10.0


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: ``kind`` befalls ``target`` after ``at`` seconds, for so many ``seconds``."""

    at: float
    kind: str
    target: str
    seconds: float

    @property
    def disturbs(self) -> bool:
        return KINDS[self.kind].disturbs

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.kind:12} {self.target}  {self.seconds:.1f} s"


def schedule(
    seed: int,
    count: int,
    sizes: Mapping[str, int],
    *,
    kinds: Iterable[str] = tuple(KINDS),
    mean_pause: float = MEAN_PAUSE,
) -> list[Strike]:
    """The first ``count`` faults of a seed, in order of time.

    ``sizes``: how many processes there are of each kind, by letter. Each fault of each letter
    comes as often as the others. The first process of each letter is never killed, so that what it
    leaks adds up; and of several of a letter one is always left undisturbed.
    """
    return list(islice(_endless(random.Random(seed), sizes, list(kinds), mean_pause), count))


def _endless(
    rng: random.Random, sizes: Mapping[str, int], kinds: list[str], mean_pause: float
) -> Iterator[Strike]:
    pairs = [(kind, letter) for kind in kinds for letter in KINDS[kind].roles if sizes.get(letter)]
    disturbed: dict[str, float] = {}  #: until when, by name
    deck: list[tuple[str, str]] = []
    at = 0.0
    while pairs:
        at += LEAST_PAUSE + rng.expovariate(1.0 / mean_pause)
        deck = deck or rng.sample(pairs, len(pairs))
        kind, letter = deck.pop()
        names = [f"{letter}{i}" for i in range(sizes[letter])]
        if KINDS[kind].disturbs:
            ends = sorted(disturbed.get(name, 0.0) for name in names)
            at = max(at, ends[min(1, len(ends) - 1)])  # so that one more than this is well
        victims = [
            name
            for name in (names[1:] if kind == "kill" else names)
            if disturbed.get(name, 0.0) <= at
        ]
        if not victims:
            deck.append((kind, letter))
            continue
        strike = Strike(at, kind, rng.choice(victims), rng.uniform(SHORTEST, LONGEST))
        if strike.disturbs:
            lasts = RECOVERY if kind == "kill" else strike.seconds
            disturbed[strike.target] = at + lasts
        yield strike
