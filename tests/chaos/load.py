"""Clients that never cease: every token that comes is compared with an undisturbed run's."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

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

#: What the first chunk tells, where answers can be resumed; elsewhere they are begun anew.
_RESUMED_WITH = frozenset({"seed", "prompt_digest", "workers"})

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
    first: float | None = None  #: when the first event came
    last: float = 0.0  #: and the last
    longest: float = 0.0  #: seconds between two tokens, at most
    gaps: list[Gap] = field(default_factory=list)  #: the notable ones
    left: bool = False  #: the client went away
    refused: int = 0
    moved: int = 0  #: times that a gateway was lost, or not there
    resumed: int = 0  #: times that another was asked for the rest
    differs: bool = False  #: not the tokens of an undisturbed run
    wrong: str = ""  #: what must not be
    error: str = ""  #: of the gateway's

    def note(self) -> None:
        """An event has come."""
        now = time.monotonic()
        if self.first is None:
            self.first = now
        else:
            self.longest = max(self.longest, now - self.last)
            if now - self.last > NOTABLE:
                self.gaps.append(Gap(self.last, now))
        self.last = now

    def __str__(self) -> str:
        return f"{self.case}: {self.wrong or self.error or 'exact'}"


class Load:
    """``clients`` streams at a time, each of a random case on a random gateway."""

    def __init__(
        self, urls: Sequence[str], expected: Mapping[Case, Known], seed: int, *, exact: bool
    ) -> None:
        """``exact``: tokens must be those expected; otherwise as many, none lost or repeated."""
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
        """Ask until all has come, or an error: a gateway that is lost or knows no worker is left
        for another, which goes on from what has come."""
        at, got = self._rng.randrange(len(http)), _Got(outcome.case)
        while (body := got.wanted()) is not None:
            outcome.resumed += "baton_resume" in body
            try:
                answer = await self._follow(http[at], body, got, outcome)
            except httpx.TransportError:
                outcome.moved += 1
            else:
                if not _refused(answer):
                    outcome.error = "" if answer.error is None else str(answer.error)
                    outcome.wrong = outcome.wrong or self._flaw(answer, body, got)
                    if outcome.error or outcome.wrong:
                        return
                    continue
                outcome.refused += 1
            at = (at + 1) % len(http)
            await asyncio.sleep(_AGAIN)

    async def _follow(
        self, http: httpx.AsyncClient, body: dict[str, Any], got: _Got, outcome: Outcome
    ) -> client.Answer:
        """One request to its end, every event compared."""
        tokens, _ = self._expected[outcome.case]
        answer, seen, text = client.Answer(), dict[int, int](), ""
        async for answer in client.stream(http, body):
            for choice, ids in answer.by_choice.items():
                new, seen[choice] = ids[seen.get(choice, 0) :], len(ids)
                have = got.ids.setdefault(choice, [])
                if new != tokens[choice][len(have) : len(have) + len(new)]:
                    outcome.differs = True
                    if self._exact:
                        outcome.wrong = outcome.wrong or f"choice {choice} is wrong at {len(have)}"
                have += new
            got.text, text = got.text + answer.text[len(text) :], answer.text
            got.told = answer.told or got.told
            outcome.note()
        return answer

    def _flaw(self, answer: client.Answer, body: dict[str, Any], got: _Got) -> str:
        """What is wrong with an answer that came to its end."""
        case = got.case
        _, text = self._expected[case]
        if answer.error is not None:
            return ""
        if not answer.ended:
            return "it broke off without a reason"
        asked = [body["baton_resume"]["choice"]] if "baton_resume" in body else range(case.choices)
        lengths = {choice: len(got.ids.get(choice, ())) for choice in asked}
        if lengths != dict.fromkeys(asked, case.max_tokens):
            return f"tokens of each choice: {lengths}, not {case.max_tokens}"
        if self._exact and case.choices == 1 and got.text != text:
            return f"its text is {got.text!r}, not {text!r}"
        return ""


class _Got:
    """What has come of an answer, from whichever gateway."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.ids: dict[int, list[int]] = {}
        self.text = ""
        self.told: dict[str, Any] = {}

    def wanted(self) -> dict[str, Any] | None:
        """The request to send next: all, or the rest of the first choice that is not whole."""
        case = self.case
        short = [c for c in range(case.choices) if len(self.ids.get(c, ())) < case.max_tokens]
        if not short:
            return None
        if not self.ids or not self.told.keys() >= _RESUMED_WITH:
            self.ids, self.text = {}, ""
            return case.body
        resume = {"generated_ids": self.ids.get(short[0], []), "choice": short[0]}
        resume |= {name: self.told[name] for name in _RESUMED_WITH}
        return {**case.body, "n": 1, "baton_resume": resume}


def _refused(answer: client.Answer) -> bool:
    return bool(answer.error and answer.error["code"] in _REFUSALS and not answer.by_choice)


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
