"""Small sums and counting down: questions with one right answer each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

SYMBOLS = ("+", "-", "x")

_WORDINGS: dict[str, tuple[str, ...]] = {
    "+": ("{a} plus {b}", "{a} and {b}", "the sum of {a} and {b}", "{a} added to {b}"),
    "-": ("{a} minus {b}", "{a} less {b}", "{a} take away {b}"),
    "x": ("{a} times {b}", "{a} multiplied by {b}", "{a} * {b}", "{a}*{b}", "{a} X {b}"),
}
_ORDERS: dict[str, tuple[str, ...]] = {
    "+": ("add {a} and {b}", "add {a} to {b}", "sum {a} and {b}"),
    "-": ("subtract {b} from {a}", "take {b} from {a}", "take {b} away from {a}"),
    "x": ("multiply {a} by {b}", "multiply {a} and {b}"),
}
_FRAMES = (
    *("what is {sum}?", "what's {sum}?", "how much is {sum}?", "calculate {sum}", "compute {sum}"),
    *("{sum}", "{sum} = ?", "{sum} =", "{sum}?", "can you calculate {sum}?", "and {sum}?"),
    *("what does {sum} make?", "solve {sum}", "please tell me what {sum} is", "now {sum}"),
    *("what do you get for {sum}?", "tell me {sum}", "{sum} is?", "what is {sum} please"),
)
_COUNTS = (
    *("count down from {first}", "count backwards from {first}", "countdown from {first}"),
    *("count from {first} to 1", "count from {first} down to 1", "count down from {first} to 1"),
    *("can you count down from {first}?", "start a countdown from {first}", "countdown {first}"),
)
_COUNTS_UP = (
    *("count to {last}", "count up to {last}", "count from 1 to {last}", "count", "count up"),
    *("can you count to {last}?", "list the numbers from {first} to {last}", "count numbers"),
)
_HELD_OUT_FRAMES = ("could you work out {sum}?", "how much would {sum} be?", "give me {sum}")


@dataclass(frozen=True, slots=True)
class Sum:
    """`left` and `right` joined by one of `SYMBOLS`."""

    left: int
    symbol: str
    right: int

    @property
    def result(self) -> int:
        if self.symbol == "+":
            return self.left + self.right
        return self.left - self.right if self.symbol == "-" else self.left * self.right

    @property
    def answer(self) -> str:
        """The one form in which the model states a sum, such as "7 + 12 = 19."."""
        return f"{self.left} {self.symbol} {self.right} = {self.result}."

    def question(self, rng: random.Random, held_out: bool = False) -> str:
        """One way to ask for it; `held_out` takes frames that training never sees."""
        if not held_out and rng.random() < 0.15:
            return rng.choice(_ORDERS[self.symbol]).format(a=self.left, b=self.right)
        if rng.random() < 0.6:
            gap = "" if rng.random() < 0.3 else " "
            stated = f"{self.left}{gap}{self.symbol}{gap}{self.right}"
        else:
            stated = rng.choice(_WORDINGS[self.symbol]).format(a=self.left, b=self.right)
        if not held_out and rng.random() < 0.2:
            return stated
        return rng.choice(_HELD_OUT_FRAMES if held_out else _FRAMES).format(sum=stated)


def draw_sum(rng: random.Random) -> Sum:
    """A sum within the model's reach, mostly of two-digit numbers, for there are more of them."""
    symbol = rng.choices(SYMBOLS, weights=(45, 45, 10))[0]
    if symbol == "x":
        return Sum(rng.randint(0, 9), symbol, rng.randint(0, 9))
    left, right = (rng.randint(0, 9 if rng.random() < 0.2 else 99) for _ in range(2))
    if symbol == "-" and rng.random() < 0.25:
        # Near neighbours are rare among all pairs, but the hardest to subtract.
        right = min(99, max(0, left + rng.randint(-12, 12)))
    if symbol == "-" and left < right and rng.random() < 0.5:
        left, right = right, left
    return Sum(left, symbol, right)


def draw_hard_sum(rng: random.Random) -> str:
    """A question beyond the model's reach, which it should say."""
    long, short = rng.randint(100, 99_999), rng.randint(2, 9_999)
    left, right = rng.sample((long, short), 2)
    symbol = rng.choice(("+", "-", "x", "*", "plus", "minus", "times"))
    if rng.random() < 0.3:
        left, right = rng.randint(10, 99), rng.randint(2, 99)
        symbol = rng.choice(("x", "*", "times", "/", "divided by"))
    return rng.choice(_FRAMES).format(sum=f"{left} {symbol} {right}")


def all_sums() -> Iterator[Sum]:
    """Every sum within the model's reach."""
    for symbol in SYMBOLS:
        limit = 10 if symbol == "x" else 100
        for left in range(limit):
            for right in range(limit):
                yield Sum(left, symbol, right)


def count_down(first: int) -> str:
    """The answer to a request to count down, such as "3, 2, 1."."""
    return ", ".join(str(number) for number in range(first, 0, -1)) + "."


def draw_count(rng: random.Random) -> tuple[str, str]:
    """A request to count down, and its answer: a stream whose every gap would show."""
    first = rng.randint(2, 100) if rng.random() < 0.5 else rng.choice((5, 10, 15, 20, 50, 100))
    return rng.choice(_COUNTS).format(first=first), count_down(first)


def draw_count_up(rng: random.Random) -> str:
    """A request to count up, where this model does not learn when to stop."""
    last = rng.randint(2, 100) if rng.random() < 0.5 else rng.choice((5, 10, 15, 20, 50, 100))
    return rng.choice(_COUNTS_UP).format(first=rng.randint(0, last), last=last)
