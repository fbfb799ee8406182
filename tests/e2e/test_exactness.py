"""Promise B: under ``--deterministic`` nothing but the request decides its tokens.

The reference is a request alone on a colocated worker, nothing cached. Against it, bitwise:
disaggregated, alone and in a batch of 16, in chunks of 16, 100 and 512, at prompt lengths around
multiples of the block size, with and without prefix hits, preempted, and with each kind of worker
killed in mid-stream; greedy and seeded.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e import client
from tests.e2e.cluster import Cluster, cluster

LENGTHS = (15, 16, 17, 47, 48, 49, 130, 257)
TOKENS = 32
LONG = 250


@dataclass(frozen=True, slots=True)
class Case:
    """A request; ``seed`` None is greedy."""

    length: int
    seed: int | None
    max_tokens: int

    @property
    def body(self) -> dict[str, object]:
        rng = random.Random(f"{self.length} {self.seed}")
        prompt = [rng.randrange(256) for _ in range(self.length)]
        sampled = {} if self.seed is None else {"temperature": 0.9, "top_p": 0.95}
        return client.body(prompt, self.max_tokens, **sampled, seed=self.seed or 0)


SHORT_CASES = [Case(length, seed, TOKENS) for length in LENGTHS for seed in (None, 7)]
LONG_CASES = [Case(length, seed, LONG) for length in (33, 200) for seed in (None, 7)]

Tokens = dict[Case, list[int]]


@contextmanager
def deterministic(model: Path, dtype: str, *flags: str) -> Iterator[Cluster]:
    """A cluster that makes promise B."""
    with cluster(model, "--deterministic", "--dtype", dtype, *flags) as running:
        yield running


async def together(url: str, cases: Sequence[Case]) -> Tokens:
    async with client.connect(url) as http:
        got = await asyncio.gather(*(client.tokens(http, case.body) for case in cases))
    return dict(zip(cases, got, strict=True))


async def one_by_one(url: str, cases: Sequence[Case]) -> Tokens:
    async with client.connect(url) as http:
        return {case: await client.tokens(http, case.body) for case in cases}


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, tiny_llama: Path) -> Tokens:
    """Each case alone on a colocated worker; on the way, the same worker with batches and hits."""
    with deterministic(tiny_llama, request.param, "--colocated", "1") as running:
        cases = [*SHORT_CASES, *LONG_CASES]
        tokens = asyncio.run(one_by_one(running.url, cases))
        assert asyncio.run(together(running.url, cases)) == tokens
    assert all(len(tokens[case]) == case.max_tokens for case in cases)
    assert len({tuple(ids) for ids in tokens.values()}) == len(cases)
    return tokens


def only(reference: Tokens, cases: Sequence[Case]) -> Tokens:
    return {case: reference[case] for case in cases}


FLOAT32 = pytest.param("float32", id="float32")
BFLOAT16 = pytest.param("bfloat16", id="bfloat16")


@pytest.mark.parametrize(
    ("reference", "chunk"),
    [
        ("float32", 16),
        ("float32", 512),
        ("bfloat16", 100),
        pytest.param("float32", 100, marks=pytest.mark.slow),
        pytest.param("bfloat16", 16, marks=pytest.mark.slow),
        pytest.param("bfloat16", 512, marks=pytest.mark.slow),
    ],
    indirect=["reference"],
)
async def test_disaggregated_in_any_chunk_and_batch(
    request: pytest.FixtureRequest, reference: Tokens, chunk: int, tiny_llama: Path
) -> None:
    dtype = request.node.callspec.params["reference"]
    wanted = only(reference, SHORT_CASES)
    with deterministic(tiny_llama, dtype, "--chunk-tokens", str(chunk)) as running:
        assert await one_by_one(running.url, SHORT_CASES) == wanted, "alone, nothing cached"
        assert await together(running.url, SHORT_CASES) == wanted, "together, prefixes cached"


@pytest.mark.parametrize(
    "reference",
    ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)],
    indirect=True,
)
async def test_preempted(
    request: pytest.FixtureRequest, reference: Tokens, tiny_llama: Path
) -> None:
    """Sixteen sequences of 2 to 18 blocks, and long ones that grow to 29, in a pool of 40."""
    dtype = request.node.callspec.params["reference"]
    cases = [*SHORT_CASES, *LONG_CASES]
    flags = ("--num-blocks", "40", "--queue-timeout", "120")
    with deterministic(tiny_llama, dtype, *flags) as running:
        assert await together(running.url, cases) == reference
        assert migrations(running, "preempted") > 0


def migrations(running: Cluster, reason: str) -> float:
    """How many attempts were placed again for this reason."""
    metrics = httpx.get(running.cluster_url.replace("/cluster", "/metrics")).text
    found = re.search(rf'^baton_migrations_total{{reason="{reason}"}} (\S+)$', metrics, re.M)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    "reference",
    ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)],
    indirect=True,
)
async def test_each_kind_of_worker_killed_in_mid_stream(
    request: pytest.FixtureRequest, reference: Tokens, tiny_llama: Path
) -> None:
    dtype = request.node.callspec.params["reference"]
    flags = ("--prefill", "2", "--decode", "2", "--chunk-tokens", "16")
    with deterministic(tiny_llama, dtype, *flags) as running:
        running.until_healthy("p0", "p1", "d0", "d1")
        for name in ("d0", "p0"):
            got = await together_while_killing(running, name, LONG_CASES)
            assert got == only(reference, LONG_CASES), f"{name} killed"
            assert f"{name} died: killed by SIGKILL" in running.output


async def together_while_killing(running: Cluster, name: str, cases: Sequence[Case]) -> Tokens:
    """Kill the worker when a quarter of all tokens is here."""
    arrived = 0
    killed = False

    async def follow(http: httpx.AsyncClient, case: Case) -> list[int]:
        nonlocal arrived, killed
        answer, counted = client.Answer(), 0
        async for current in client.stream(http, case.body):
            answer = current
            arrived += len(answer.token_ids) - counted
            counted = len(answer.token_ids)
            if arrived > len(cases) * LONG / 4 and not killed:
                killed = True
                running.processes[name].send(signal.SIGKILL)
        assert answer.done and answer.error is None, answer
        return answer.token_ids

    async with client.connect(running.url) as http:
        got = await asyncio.gather(*(follow(http, case) for case in cases))
    assert killed
    return dict(zip(cases, got, strict=True))
