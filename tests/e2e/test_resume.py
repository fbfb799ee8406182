"""A gateway is killed while its streams run; their clients go on at another one, from what they
have, and in the end have exactly the answers of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from baton import AsyncClient, Client
from baton.cli import ports
from baton.client import AsyncStream, Chunk, GenerateOptions
from tests.e2e import client
from tests.e2e.cluster import DEMO, MODEL, ROOT, START_SECONDS, Cluster, cluster, get, until
from tests.lines import TcpLine

TOKENS = 300
#: What passes of each answer before the gateway is killed: some tokens, and never all of them.
FEW_EVENTS = 6
LONG: GenerateOptions = {"max_new_tokens": TOKENS, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Victim:
    """A gateway that is to be killed. Its clients get only the beginnings of their answers, so none
    has all of it, however slow the others are."""

    line: TcpLine
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{self.line.address}"

    async def until_begun(self, streams: int) -> None:
        """Wait until so many clients have the beginnings of their answers."""
        async with asyncio.timeout(60.0):
            while sum(connection.held for connection in self.line.connections) < streams:
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.line.cut()


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster(DEMO, "--deterministic", "--decode", "2") as started:
        yield started


@contextmanager
def another_gateway(running: Cluster) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its API's address. It has the same workers, as a list."""
    unused = ports.free("127.0.0.1")
    api, admin, rpc = str(next(unused)), str(next(unused)), str(next(unused))
    by_kind = {
        flag: ",".join(p.address for p in running.workers if p.name.startswith(flag[2]))
        for flag in ("--prefill", "--decode")
    }
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway", "--model", str(DEMO), "--served-model-name", MODEL),
            *("--port", api, "--admin-port", admin, "--rpc-port", rpc),
            *(part for pair in by_kind.items() for part in pair),
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("BATON_")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{api}"

    def ready() -> bool:
        try:
            return get(f"http://{address}/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, START_SECONDS, "the other gateway is ready")
        yield address, child
    finally:
        child.kill()
        child.wait()


@asynccontextmanager
async def a_victim(running: Cluster) -> AsyncIterator[Victim]:
    with another_gateway(running) as (address, process):
        line = TcpLine(lambda: address)
        line.events = FEW_EVENTS
        async with line.open():
            yield Victim(line, process)


@dataclass(slots=True)
class Cut:
    """What a client has of an answer when its gateway is gone."""

    answer: client.Answer

    @property
    def resume(self) -> dict[str, Any]:
        told = {name: value for name, value in self.answer.told.items() if name != "request_id"}
        return {**told, "generated_ids": self.answer.token_ids}


async def until_cut(http: httpx.AsyncClient, cut: Cut, body: dict[str, Any]) -> None:
    """Follow a stream that will break."""
    try:
        async for current in client.stream(http, body):
            cut.answer = current
    except httpx.TransportError:
        return
    raise AssertionError(f"it was not cut: {cut}")


def bodies() -> list[dict[str, Any]]:
    """Greedy and sampled, one with a stop string that never comes."""
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(60 + 40 * i)] for i in range(6)]
    sampled = {"temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.5}
    return [
        client.body(prompt, TOKENS, **(sampled | {"seed": i} if i % 2 else {}), stop="\x00never")
        for i, prompt in enumerate(prompts)
    ]


async def test_clients_of_a_killed_gateway_resume_on_another(running: Cluster) -> None:
    work = bodies()
    cuts = [Cut(client.Answer()) for _ in work]
    async with a_victim(running) as victim, client.connect(victim.url) as http:
        following = [
            asyncio.create_task(until_cut(http, cut, body))
            for cut, body in zip(cuts, work, strict=True)
        ]
        await victim.until_begun(len(work))
        victim.kill()
        await asyncio.gather(*following)
    async with client.connect(running.url) as http:
        resumed = await asyncio.gather(
            *(
                client.whole(http, {**body, "baton_resume": cut.resume})
                for cut, body in zip(cuts, work, strict=True)
            )
        )
        for body, cut, rest in zip(work, cuts, resumed, strict=True):
            assert rest.done and rest.error is None, rest
            undisturbed = await client.whole(http, {**body, "seed": cut.answer.told["seed"]})
            assert cut.answer.token_ids + rest.token_ids == undisturbed.token_ids
            assert cut.answer.text + rest.text == undisturbed.text
        forged = {**cuts[0].resume, "prompt_digest": cuts[1].answer.told["prompt_digest"]}
        refused = await client.whole(http, {**work[0], "baton_resume": forged})
        assert refused.error is not None and "prompt_digest" in refused.error["message"]


#: By Baton's client.
ASKED: list[GenerateOptions] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.95, "stop": "\x00never"},
    {"temperature": 0.8, "n": 3, "seed": 7},
]


async def test_batons_client_resumes_by_itself(running: Cluster) -> None:
    """Each call twice, as calls go to the gateways in turn: one of the two is cut."""
    rng = random.Random(4)
    calls = [
        ([rng.randrange(256) for _ in range(80 + 40 * i)], ASKED[i // 2] | LONG)
        for i in range(2 * len(ASKED))
    ]
    async with a_victim(running) as victim:
        urls = [victim.url, running.url]
        async with AsyncClient(urls) as client, AsyncClient(running.url) as calm:
            with Client(urls) as blocking:
                streams = [client.generate(prompt, stream=True, **asked) for prompt, asked in calls]
                more = [blocking.generate(calls[0][0], stream=True, **LONG) for _ in range(2)]
                following = [
                    *(asyncio.create_task(followed(stream)) for stream in streams),
                    *(asyncio.create_task(asyncio.to_thread(list, stream)) for stream in more),
                ]
                answers = [stream.answer for stream in (*streams, *more)]
                await victim.until_begun(len(answers) // 2)
                victim.kill()
                chunks = await asyncio.gather(*following)
            calls += [(calls[0][0], LONG)] * 2
            for (prompt, asked), answer, seen in zip(calls, answers, chunks, strict=True):
                again: GenerateOptions = {**asked, "seed": answer.seed or 0}
                undisturbed = await calm.generate(prompt, **again)
                for was, is_now in zip(undisturbed.choices, answer.choices, strict=True):
                    mine = [chunk for chunk in seen if chunk.choice == was.index]
                    assert is_now.tokens == was.tokens
                    assert is_now.text == was.text == "".join(chunk.text for chunk in mine)
                assert answer.finish_reason == "length"
    pairs = zip(answers[::2], answers[1::2], strict=True)
    assert [one.resumed + other.resumed for one, other in pairs] == [1] * 4


async def followed(stream: AsyncStream) -> list[Chunk]:
    async with stream:
        return [chunk async for chunk in stream]
