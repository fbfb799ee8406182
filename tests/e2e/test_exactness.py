"""Promise B: under ``--deterministic`` nothing but the request decides its tokens.

The reference is a request alone on a colocated worker, nothing cached. Against it, bitwise:
disaggregated, alone and in a batch, with several choices, in chunks of 16, 100 and 512, at prompt
lengths around multiples of the block size, with and without prefix hits, preempted, and with each
kind of worker killed in mid-stream; greedy and seeded.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e import client
from tests.e2e.cluster import DEMO, Cluster, cluster, report
from tests.reference import FAMILIES, make_checkpoint

BLOCK = 16
LENGTHS = (15, 16, 17, 47, 48, 49, 130, 257)
TOKENS = 32
LONG = 100


@dataclass(frozen=True, slots=True)
class Case:
    """A request; ``seed`` None is greedy."""

    length: int
    seed: int | None
    max_tokens: int
    n: int = 1  #: choices, computed as one

    @property
    def body(self) -> dict[str, object]:
        rng = random.Random(f"{self.length} {self.seed}")
        prompt = [rng.randrange(256) for _ in range(self.length)]
        sampled = {} if self.seed is None else {"temperature": 0.9, "top_p": 0.95}
        return client.body(prompt, self.max_tokens, **sampled, seed=self.seed or 0, n=self.n)


SHORT_CASES = [Case(length, seed, TOKENS) for length in LENGTHS for seed in (None, 7)]
SHORT_CASES += [Case(length, seed, TOKENS, n=3) for length in (32, 50) for seed in (None, 11)]
LONG_CASES = [Case(length, seed, LONG) for length in (33, 200) for seed in (None, 7, 8, 9)]

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
def references() -> dict[str, Tokens]:
    """By dtype, as they are computed."""
    return {}


def alone_and_together(model: Path, dtype: str, cases: Sequence[Case]) -> Tokens:
    """Each case alone on a colocated worker; on the way, the same worker with batches and hits."""
    with deterministic(model, dtype, "--colocated", "1") as running:
        tokens = asyncio.run(one_by_one(running.url, cases))
        assert asyncio.run(together(running.url, cases)) == tokens
    assert all(len(tokens[case]) == case.n * case.max_tokens for case in cases)
    assert len({tuple(ids) for ids in tokens.values()}) == len(cases)
    return tokens


@pytest.fixture
def reference(
    request: pytest.FixtureRequest, references: dict[str, Tokens], tiny_llama: Path
) -> Tokens:
    """The tokens of every case, in the dtype that the test asks for."""
    dtype = request.param
    if dtype not in references:
        references[dtype] = alone_and_together(tiny_llama, dtype, [*SHORT_CASES, *LONG_CASES])
    return references[dtype]


def dtype_of(request: pytest.FixtureRequest) -> str:
    """What ``reference`` was asked for."""
    return str(request.node.callspec.params["reference"])


def only(reference: Tokens, cases: Sequence[Case]) -> Tokens:
    return {case: reference[case] for case in cases}


@pytest.mark.parametrize(
    ("reference", "chunk"),
    [
        ("float32", 16),
        ("bfloat16", 16),
        ("bfloat16", 100),
        ("bfloat16", 512),
        pytest.param("float32", 100, marks=pytest.mark.slow),
        pytest.param("float32", 512, marks=pytest.mark.slow),
    ],
    indirect=["reference"],
)
async def test_disaggregated_in_any_chunk_and_batch(
    request: pytest.FixtureRequest, reference: Tokens, chunk: int, tiny_llama: Path
) -> None:
    dtype = dtype_of(request)
    wanted = only(reference, SHORT_CASES)
    with deterministic(tiny_llama, dtype, "--chunk-tokens", str(chunk)) as running:
        assert await one_by_one(running.url, SHORT_CASES) == wanted, "alone, nothing cached"
        assert await together(running.url, SHORT_CASES) == wanted, "together, prefixes cached"


@pytest.mark.parametrize("reference", ["float32", "bfloat16"], indirect=True)
async def test_prefilled_where_it_is_cheaper(
    request: pytest.FixtureRequest, reference: Tokens, tiny_llama: Path
) -> None:
    """Prompts are computed on either side, as measured costs happen to say."""
    dtype = dtype_of(request)
    wanted = only(reference, SHORT_CASES)
    with deterministic(tiny_llama, dtype, "--local-prefill-queue", "100000") as running:
        assert await one_by_one(running.url, SHORT_CASES) == wanted
        assert await together(running.url, SHORT_CASES) == wanted
        assert running.prefilled_locally() > 0


@pytest.mark.parametrize("reference", ["float32", "bfloat16"], indirect=True)
async def test_preempted(
    request: pytest.FixtureRequest, reference: Tokens, tiny_llama: Path
) -> None:
    """Sixteen sequences of 3 to 19 blocks, four times three, and eight of 9 to 19, in a pool of 40.

    Sent again until some did meet: on a busy machine they may come one after another.
    """
    dtype = dtype_of(request)
    cases = [*SHORT_CASES, *LONG_CASES]
    flags = ("--num-blocks", "40", "--queue-timeout", "120")
    with deterministic(tiny_llama, dtype, *flags) as running:
        for _ in range(5):
            assert await together(running.url, cases) == reference
            if running.migrations().get("preempted", 0) > 0:
                return
        pytest.fail("five times together, and none was preempted")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
async def test_each_kind_of_worker_killed_in_mid_stream(dtype: str) -> None:
    """On the demo model, which takes long enough to be killed within.

    One of two prefill workers is lost while it computes; then the only decode worker while it
    generates every stream, so that all wait until it is there again.

    Sent again until a worker was lost in time, with other prompts, of which nothing is cached: on a
    busy machine the moment may pass unseen.
    """
    # In chunks this small a prompt is computed for a second or more.
    with deterministic(DEMO, dtype, "--prefill", "2", "--chunk-tokens", "16") as running:
        running.until_healthy("p0", "p1", "d0")

        def computing(_: Sequence[client.Answer]) -> bool:
            """A long prompt's blocks are held where the victim is."""
            load = report(running.processes["p0"].address, idle=False).load
            return load.blocks_owned * BLOCK >= 1600

        def streaming(growing: Sequence[client.Answer]) -> bool:
            return all(answer.token_ids for answer in growing)

        lost: dict[str, float] = {}
        for turn in range(4):  # `baton up` gives up a worker that dies five times in a row
            cases = [
                Case(turn + length, seed, 100) for length in (1600, 40) for seed in (None, 7, 8)
            ]
            cases += [Case(turn + 41, seed, 100, n=3) for seed in (None, 9)]
            wanted = await asyncio.to_thread(alone_and_together, DEMO, dtype, cases)
            if "prefill_lost" not in lost:
                assert await together_while_killing(running, "p0", cases, computing) == wanted
            assert await together_while_killing(running, "d0", cases, streaming) == wanted
            lost = running.migrations()
            if lost.keys() >= {"prefill_lost", "decode_lost"}:
                return
        pytest.fail(f"sent four times, but lost in time were only {lost}")


async def together_while_killing(
    running: Cluster,
    name: str,
    cases: Sequence[Case],
    is_time: Callable[[Sequence[client.Answer]], bool],
) -> Tokens:
    """Send all cases at once; kill the worker when ``is_time``, of the answers so far.

    It is not killed if that was not seen before all have ended; if it was, it is healthy again.
    """
    victim = running.processes[name]
    growing = [client.Answer() for _ in cases]

    async def follow(http: httpx.AsyncClient, index: int) -> list[int]:
        async for answer in client.stream(http, cases[index].body):
            growing[index] = answer
        assert growing[index].done and growing[index].error is None, growing[index]
        return growing[index].token_ids

    async with client.connect(running.url) as http, asyncio.TaskGroup() as group:
        following = [group.create_task(follow(http, index)) for index in range(len(cases))]
        while not (seen := await asyncio.to_thread(is_time, growing)):
            if all(task.done() for task in following):
                break
            await asyncio.sleep(0.001)
        if seen:
            victim.send(signal.SIGKILL)
    if seen:
        await asyncio.to_thread(running.until_back, victim)
    return {case: task.result() for case, task in zip(cases, following, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(family, tmp_path)
    wanted = alone_and_together(checkpoint, dtype, SHORT_CASES)
    with deterministic(checkpoint, dtype, "--chunk-tokens", "100") as running:
        assert asyncio.run(one_by_one(running.url, SHORT_CASES)) == wanted
        assert asyncio.run(together(running.url, SHORT_CASES)) == wanted
