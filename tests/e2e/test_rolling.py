"""Every worker is restarted in turn while requests come and streams go on: no request fails, and
every answer is the very same. So it is while the fleet is upgraded from the protocol before."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from baton.cli.processes import Spec
from baton.identity import PROTOCOL, CompatibilityClass
from baton.sampling import SamplingSpec
from baton.settings import UpSettings
from model.engine.mock_runner import expected_tokens
from tests.e2e import client
from tests.e2e.cluster import DEMO, MODEL, START_SECONDS
from tests.fleets import Fleet, fleet

CLIENTS = 6
#: Some answers end while their worker drains, others are moved.
GRACE = "1.0"
CASES = [(length, tokens, n) for length in (20, 300) for tokens in (5, 60, 150) for n in (1, 3)]


@dataclass(frozen=True, slots=True)
class Case:
    """A greedy request with a known answer."""

    prompt: tuple[int, ...]
    max_tokens: int
    n: int

    def expected(self, compatibility: CompatibilityClass) -> list[int]:
        """Of each choice, one after the other."""
        spec = SamplingSpec(temperature=0.0, max_tokens=self.max_tokens, ignore_eos=True)
        return [
            token_id
            for choice in range(self.n)
            for token_id in expected_tokens(self.prompt, spec, compatibility, choice_index=choice)
        ]


def cases() -> list[Case]:
    rng = random.Random(6)
    return [
        Case(tuple(rng.randrange(256) for _ in range(length)), tokens, n)
        for length, tokens, n in CASES
    ]


@dataclass(slots=True)
class Load:
    """Requests that never cease, and what is wrong with the answers."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)


@asynccontextmanager
async def load(running: Fleet) -> AsyncIterator[Load]:
    """Requests for the length of the body; all have ended after it."""
    work, tally, enough = cases(), Load(), asyncio.Event()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        seen = (await http.get(f"{running.admins['g0']}/cluster")).json()["workers"]
    same = CompatibilityClass(**seen[0]["compatibility"])
    expected = {case: case.expected(same) for case in work}

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        while not enough.is_set():
            case = rng.choice(work)
            body = client.body(case.prompt, case.max_tokens, n=case.n)
            answer = await client.whole(http, body)
            tally.answered += 1
            if not answer.done or answer.token_ids != expected[case]:
                tally.wrong.append(f"{len(case.prompt)} + {case.max_tokens}: {answer}")

    async with client.connect(running.urls["g0"]) as http, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(ask(http, number))
        try:
            yield tally
        finally:
            enough.set()


async def restart(running: Fleet, name: str) -> None:
    """Tell a worker to stop; returns when the one that follows it is healthy."""
    before = running.ready[name]
    before.send(signal.SIGTERM)
    deadline = time.monotonic() + START_SECONDS
    while (now := running.ready.get(name)) is None or now.pid == before.pid:
        assert time.monotonic() < deadline, f"{name} is not back"
        await asyncio.sleep(0.05)
    await running.until_healthy(4, START_SECONDS)


def settings() -> UpSettings:
    return UpSettings.model_validate(
        {
            "model": str(DEMO),
            "served_model_name": MODEL,
            "threads": 1,
            "prefill": 2,
            "decode": 2,
            "local_prefill_queue": 0,
            "mock": True,
            "mock_step_ms": 20,
            "mock_prefill_us": 500,
        }
    )


async def protocols(running: Fleet) -> set[int]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        seen = (await http.get(f"{running.admins['g0']}/cluster")).json()["workers"]
    return {worker["protocol"] for worker in seen}


async def roll(running: Fleet) -> None:
    async with load(running) as tally:
        for name in ("p0", "d0", "p1", "d1"):
            await restart(running, name)
    assert not tally.wrong, tally.wrong
    assert tally.answered > CLIENTS
    await running.require_integrity(60.0)


@pytest.mark.timeout(400)
async def test_workers_restart_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_DRAIN_GRACE", GRACE)
    async with fleet(settings(), tmp_path / "fleet.log") as running:
        await running.until_healthy(4, START_SECONDS)
        await roll(running)


@pytest.mark.timeout(400)
async def test_an_upgrade_from_the_protocol_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_DRAIN_GRACE", GRACE)

    def old(spec: Spec) -> Spec:
        if spec.name == "gateway":
            return spec
        arguments = (str(tmp_path / spec.name), spec.module, *spec.arguments)
        return replace(spec, module="tests.previous", arguments=arguments)

    async with fleet(settings(), tmp_path / "fleet.log", launch=old) as running:
        await running.until_healthy(4, START_SECONDS)
        assert await protocols(running) == {PROTOCOL - 1}
        await roll(running)
        assert await protocols(running) == {PROTOCOL}
