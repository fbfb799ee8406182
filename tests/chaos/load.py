"""Clients that never cease: every token that comes is compared with an undisturbed run's."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx

from tests.cases import Case
from tests.e2e import client

#: A stream that takes longer hangs; whatever is given up by the gateway is so sooner.
HANG_SECONDS = 150.0
#: How many clients go away in mid-stream.
LEAVING = 0.05
#: A silence of this length within a stream is kept, with its time.
NOTABLE = 0.3
_AGAIN = 0.3  # seconds before a refused or broken request is sent again
#: Refusals before anything was begun, which a client answers by asking again.
_REFUSALS = frozenset({"no_worker", "queue_full"})

#: Token ids by choice, and the text of all.
Known = tuple[dict[int, list[int]], str]


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a stream brought nothing."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(slots=True)
class Outcome:
    """What a client met with. Times are those of ``time.monotonic``."""

    case: Case
    began: float
    ended: float = 0.0
    first: float | None = None  #: when the first token came
    longest: float = 0.0  #: seconds between two tokens, at most
    gaps: list[Gap] = field(default_factory=list)  #: the notable ones
    left: bool = False  #: the client went away
    refused: int = 0
    moved: int = 0  #: times that its gateway was lost
    wrong: str = ""  #: what is not as it was in an undisturbed run
    error: str = ""  #: of the gateway's

    def __str__(self) -> str:
        return f"{self.case}: {self.wrong or self.error or 'exact'}"


class Load:
    """``clients`` streams at a time, each of a random case on a random gateway."""

    def __init__(
        self, urls: Sequence[str], expected: Mapping[Case, Known], seed: int, *, exact: bool
    ) -> None:
        """``exact``: tokens must be those expected; otherwise only as many."""
        self.outcomes: list[Outcome] = []
        self._urls = urls
        self._expected = expected
        self._cases = list(expected)
        self._rng = random.Random(seed)
        self._exact = exact

    async def run(self, clients: int, streams: int, enough: asyncio.Event) -> None:
        """Until there were so many streams and it is ``enough``."""
        async with AsyncExitStack() as stack:
            http = [await stack.enter_async_context(client.connect(url)) for url in self._urls]
            begun = 0

            async def keep_asking() -> None:
                nonlocal begun
                while begun < streams or not enough.is_set():
                    begun += 1
                    self.outcomes.append(await self._stream(http))

            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(keep_asking())

    async def _stream(self, http: Sequence[httpx.AsyncClient]) -> Outcome:
        outcome = Outcome(self._rng.choice(self._cases), time.monotonic())
        patience = self._rng.uniform(0.0, 2.0) if self._rng.random() < LEAVING else HANG_SECONDS
        try:
            async with asyncio.timeout(patience):
                await self._persist(http, outcome)
        except TimeoutError:
            outcome.left = patience < HANG_SECONDS
            if not outcome.left:
                outcome.wrong = f"hangs: not over after {HANG_SECONDS:g} s"
        outcome.ended = time.monotonic()
        return outcome

    async def _persist(self, http: Sequence[httpx.AsyncClient], outcome: Outcome) -> None:
        """Ask until there is an answer or an error: a gateway that is lost or knows no worker is
        left for another."""
        at = self._rng.randrange(len(http))
        while True:
            answer = client.Answer()
            try:
                answer = await self._follow(http[at], outcome)
            except httpx.TransportError:
                outcome.moved += 1
            else:
                if not _refused(answer):
                    outcome.error = "" if answer.error is None else str(answer.error)
                    return
                outcome.refused += 1
            at = (at + 1) % len(http)
            await asyncio.sleep(_AGAIN)

    async def _follow(self, http: httpx.AsyncClient, outcome: Outcome) -> client.Answer:
        """One request to its end, every event compared."""
        tokens, text = self._expected[outcome.case]
        answer, seen, last = client.Answer(), dict[int, int](), outcome.began
        async for answer in client.stream(http, outcome.case.body):
            for choice, ids in answer.by_choice.items():
                before, seen[choice] = seen.get(choice, 0), len(ids)
                new = ids[before:]
                if self._exact and new != tokens[choice][before : len(ids)]:
                    outcome.wrong = f"choice {choice} goes wrong between {before} and {len(ids)}"
            last = _note(outcome, last)
        if answer.error is None:
            outcome.wrong = outcome.wrong or self._whole(outcome.case, answer, tokens, text)
        return answer

    def _whole(
        self, case: Case, answer: client.Answer, tokens: Mapping[int, list[int]], text: str
    ) -> str:
        """What is wrong with an answer that came to its end."""
        if not answer.ended:
            return "it broke off without a reason"
        if self._exact and len(tokens) == 1 and answer.text != text:
            return f"its text is {answer.text!r}, not {text!r}"
        lengths = {choice: len(ids) for choice, ids in answer.by_choice.items()}
        if lengths != dict.fromkeys(range(case.choices), case.max_tokens):
            return f"tokens of each choice: {lengths}, not {case.max_tokens}"
        return ""


def _refused(answer: client.Answer) -> bool:
    return bool(answer.error and answer.error["code"] in _REFUSALS and not answer.by_choice)


def _note(outcome: Outcome, last: float) -> float:
    """An event has come; returns when."""
    now = time.monotonic()
    if outcome.first is None:
        outcome.first = now
        return now
    outcome.longest = max(outcome.longest, now - last)
    if now - last > NOTABLE:
        outcome.gaps.append(Gap(last, now))
    return now


async def undisturbed(url: str, work: Sequence[Case], clients: int) -> dict[Case, Known]:
    """What each case is answered with, so many at a time."""
    places, known = asyncio.Semaphore(clients), dict[Case, Known]()

    async def learn(http: httpx.AsyncClient, case: Case) -> None:
        async with places:
            answer = await client.whole(http, case.body)
        assert answer.done and answer.error is None, (case, answer)
        known[case] = dict(answer.by_choice), answer.text

    async with client.connect(url) as http:
        await asyncio.gather(*(learn(http, case) for case in work))
    return known
