"""Requests whose tokens are known from an undisturbed run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.e2e import client


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt of random ids and how it is to be answered."""

    number: int
    length: int
    max_tokens: int
    seed: int | None  #: None is greedy
    choices: int = 1

    @property
    def body(self) -> dict[str, Any]:
        rng = random.Random(self.number)
        prompt = [rng.randrange(256) for _ in range(self.length)]
        sampled = {} if self.seed is None else {"temperature": 0.9, "top_p": 0.95}
        several = {} if self.choices == 1 else {"n": self.choices}
        return client.body(prompt, self.max_tokens, **sampled, **several, seed=self.seed or 0)


def cases(
    rng: random.Random,
    count: int,
    lengths: tuple[int, int] = (200, 1000),
    tokens: tuple[int, int] = (30, 60),
) -> list[Case]:
    """Every other one greedy. By default prompts of several chunks."""
    return [
        Case(i, rng.randrange(*lengths), rng.randrange(*tokens), i if i % 2 else None)
        for i in range(count)
    ]
