"""What is asked, and when: prompts of a trace or of one's own, and times of arrival."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from string import ascii_lowercase

from bench.trace import Request, tokens

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """From ``least`` to ``most`` tokens, all of them as likely."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """``"512"`` or ``"64:512"``. Raises ValueError."""
        least, _, most = text.partition(":")
        made = cls(int(least), int(most or least))
        if not 1 <= made.least <= made.most:
            raise ValueError(f"{text} is no range of at least one token")
        return made

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.least, self.most)


def drawn(
    count: int, prompt: Lengths, output: Lengths, *, prefix: int, vocabulary: int, seed: int
) -> list[Request]:
    """Requests of random ids, all to be sent at 0; the first ``prefix`` ids are the same in all.

    Raises ValueError where a prompt may be no longer than that.
    """
    if prefix >= prompt.least:
        raise ValueError(f"{prefix} tokens that all share leave nothing of {prompt.least}")
    rng = random.Random(seed)
    shared = tokens(f"{seed}, prefix", prefix, vocabulary)
    return [
        Request(
            0.0,
            shared + tokens(f"{seed}, request {n}", prompt.draw(rng) - prefix, vocabulary),
            output.draw(rng),
        )
        for n in range(count)
    ]


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Seconds, the first at 0: gaps of a Gamma distribution whose mean is 1 / ``rate``.

    ``burstiness`` is its shape, as in vLLM's benchmark: 1 is a Poisson process, less comes in
    bursts (the gaps' coefficient of variation is 1 / sqrt(burstiness)), infinity is a steady beat.
    """
    rng = random.Random(seed)
    steady = math.isinf(burstiness)
    gaps = (
        1 / rate if steady else rng.gammavariate(burstiness, 1 / rate / burstiness)
        for _ in range(count - 1)
    )
    return accumulate(gaps, initial=0.0)


def at_rate(asked: Sequence[Request], rate: float, burstiness: float, seed: int) -> list[Request]:
    """The same requests, at other times."""
    times = arrivals(len(asked), rate, burstiness, seed)
    return [replace(request, at=at) for request, at in zip(asked, times, strict=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Whom to ask, and in which words."""

    url: str  #: without /v1
    model: str
    chat: bool  #: else completions
    words: bool  #: prompts are text, else lists of ids; chat is always text
    key: str | None = None
    sessions: bool = False  #: names the conversation to a Baton gateway
    extra: Mapping[str, Json] | None = None  #: fields of every body; None takes one away

    @property
    def address(self) -> str:
        return f"{self.url.rstrip('/')}/v1/{'chat/' if self.chat else ''}completions"

    def headers(self, request: Request) -> dict[str, str]:
        found = {"content-type": "application/json"}
        if self.key is not None:
            found["authorization"] = f"Bearer {self.key}"
        if self.sessions and request.conversation is not None:
            found["x-baton-session"] = str(request.conversation)
        return found

    def body(self, request: Request) -> str:
        """JSON."""
        fields: dict[str, Json] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            fields["messages"] = [{"role": "user", "content": _text(request.prompt)}]
        else:
            fields["prompt"] = _text(request.prompt) if self.words else list(request.prompt)
        fields |= self.extra or {}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def _text(ids: Sequence[int]) -> str:
    """A letter for each id: with the space before it that is one token to most tokenizers."""
    return " ".join(ascii_lowercase[one % 26] for one in ids)
