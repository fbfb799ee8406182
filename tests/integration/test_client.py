"""The client against real gateways in front of scripted workers, through lines that can be cut."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from baton import AsyncClient, Client
from baton.client import Answer, Chunk
from baton.errors import (
    DeadlineExceeded,
    GatewayLost,
    InvalidApiKey,
    InvalidRequest,
    ModelNotFound,
    NoWorker,
    PeerError,
    UnsupportedParameter,
)
from baton.keys import ApiKey
from baton.v1 import worker_pb2
from tests.fakes import EOS, MODEL, FakeWorker, answering, ids, write_checkpoint
from tests.gateways import Gateway, serving
from tests.lines import TcpLine

TEXT = "one two thrée €uro 😀 six"
TOKENS = [*ids(TEXT), EOS]
#: Above what tests wait for; a machine may be busy.
LONG = 60.0
ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def colocated(**script: Any) -> FakeWorker:
    return FakeWorker(script=answering(TEXT, **script), local_prefill=True)


async def blocking(url: str | list[str], call: Callable[[Client], T], **client: Any) -> T:
    """``call`` in a thread, as the gateway runs in this one."""

    def work() -> T:
        with Client(url, **client) as made:
            return call(made)

    return await asyncio.to_thread(work)


#: A port where nobody listens.
NOWHERE = "127.0.0.1:1"
NOWHERE_URL = f"http://{NOWHERE}"


def address(gateway: Gateway) -> str:
    return gateway.url.removeprefix("http://")


async def test_whole_and_in_chunks_blocking_and_not(checkpoint: Path) -> None:
    async with serving(checkpoint, [colocated()]) as gateway, AsyncClient(gateway.url) as client:
        answers: list[Answer] = [
            await client.generate("hi", max_new_tokens=100),
            await client.chat("hi", max_new_tokens=100),
            await blocking(gateway.url, lambda c: c.generate("hi", max_new_tokens=100)),
            await blocking(gateway.url, lambda c: c.chat("hi", max_new_tokens=100)),
        ]

        async def follow() -> tuple[Answer, list[Chunk]]:
            async with client.generate("hi", stream=True) as stream:
                chunks = [chunk async for chunk in stream]
            return stream.answer, chunks

        def iterate(client: Client) -> tuple[Answer, list[Chunk]]:
            with client.chat("hi", stream=True) as stream:
                chunks = list(stream)
            assert (stream.text, stream.tokens) == (TEXT, TOKENS)
            assert (stream.finish_reason, stream.usage) == ("stop", stream.answer.usage)
            return stream.answer, chunks

        for answer, chunks in (await follow(), await blocking(gateway.url, iterate)):
            assert "".join(chunk.text for chunk in chunks) == TEXT
            assert [token for chunk in chunks for token in chunk.tokens] == TOKENS
            answers.append(answer)
        assert await client.models() == [MODEL]
    for answer in answers:
        assert (answer.text, answer.tokens, answer.finish_reason) == (TEXT, TOKENS, "stop")
        assert (answer.model, answer.resumed) == (MODEL, 0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(TOKENS)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(TOKENS)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("streams", ["async", "blocking"])
async def test_a_cut_answer_goes_on_elsewhere_with_the_next_token(
    checkpoint: Path, n: int, streams: str
) -> None:
    """The first worker hangs in mid-answer; then its gateway is gone, and another is there."""
    text = "€".join(TEXT)
    had = len(ids(text)) // 2
    slow = FakeWorker(script=answering(text, stop_after=had), local_prefill=True)
    well = FakeWorker(script=answering(text), local_prefill=True)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving(checkpoint, [slow]))
        second = await stack.enter_async_context(serving(checkpoint, [well]))
        behind = {"a": address(first), "b": NOWHERE}
        a = await stack.enter_async_context(TcpLine(lambda: behind["a"]).open())
        b = await stack.enter_async_context(TcpLine(lambda: behind["b"]).open())
        urls = [f"http://{line.address}" for line in (a, b)]
        loop = asyncio.get_running_loop()
        seen: list[Chunk] = []

        def die() -> None:
            behind.update(a=NOWHERE, b=address(second))
            a.cut()

        def take(chunk: Chunk) -> None:
            seen.append(chunk)
            if sum(len(each.tokens) for each in seen) == n * had:
                loop.call_soon_threadsafe(die)

        def iterate(client: Client) -> Answer:
            with client.generate("hi", stream=True, n=n, seed=3) as stream:
                for chunk in stream:
                    take(chunk)
            return stream.answer

        async def follow() -> Answer:
            async with (
                AsyncClient(urls) as client,
                client.generate("hi", stream=True, n=n, seed=3) as stream,
            ):
                async for chunk in stream:
                    take(chunk)
                return stream.answer

        answer = await (blocking(urls, iterate) if streams == "blocking" else follow())
        assert second.metric("baton_resumes_total", outcome="accepted") == n
    assert len(slow.submits) == 1
    asked = [submit.generation for submit in well.submits]
    assert [each.generated_ids for each in asked] == [tuple(ids(text)[:had])] * n
    assert [each.key.choice_index for each in asked] == list(range(n))
    for choice in answer.choices:
        assert (choice.text, choice.tokens) == (text, [*ids(text), EOS])
        mine = [chunk for chunk in seen if chunk.choice == choice.index]
        assert "".join(chunk.text for chunk in mine) == text
    assert (answer.resumed, answer.seed) == (1, 3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == n * (len(ids(text)) + 1)


async def test_a_gateway_without_workers_is_passed_over(checkpoint: Path) -> None:
    async with (
        serving(checkpoint, []) as empty,
        serving(checkpoint, [colocated()]) as gateway,
        AsyncClient(empty.url, gateway.url, NOWHERE_URL, model=MODEL) as client,
        AsyncClient(empty.url, model=MODEL, patience=0.0) as hasty,
    ):
        for _ in range(4):
            assert (await client.generate("hi")).text == TEXT
        with pytest.raises(NoWorker) as refused:
            await hasty.generate("hi")
        assert refused.value.retry_after >= 1.0


async def test_errors_are_those_of_the_table(checkpoint: Path) -> None:
    key = ApiKey.new()
    async with (
        serving(checkpoint, [colocated()]) as gateway,
        AsyncClient(gateway.url) as client,
        AsyncClient(gateway.url, model="another") as mistaken,
        AsyncClient(NOWHERE_URL, patience=0.2) as alone,
    ):
        with pytest.raises(ModelNotFound, match="'another' is not served"):
            await mistaken.generate("hi")
        with pytest.raises(InvalidRequest, match="at most 100") as refused:
            await client.generate("hi", temperature=200.0)
        assert refused.value.param == "temperature"
        with pytest.raises(UnsupportedParameter, match="'beams' is not an option"):
            client.generate("hi", beams=3)  # type: ignore[call-overload]
        with pytest.raises(GatewayLost, match=NOWHERE):
            await alone.chat("hi")
        with pytest.raises(InvalidRequest, match="no admin URL"):
            client.cluster()
        keys = checkpoint / "keys"
        keys.write_text(json.dumps({"name": "alice", "id": key.id, "hash": key.hash}) + "\n")
    async with serving(checkpoint, [colocated()], api_keys=keys) as gateway:
        answer = await blocking(gateway.url, lambda c: c.generate("hi"), api_key=key.text)
        assert answer.text == TEXT
        with pytest.raises(InvalidApiKey):
            await blocking(gateway.url, lambda c: c.generate("hi"))


async def test_a_stream_that_is_left_frees_what_worked_for_it(checkpoint: Path) -> None:
    worker = colocated(stop_after=3)

    def leave(client: Client) -> None:
        for chunk in client.generate("hi", stream=True):
            if TOKENS[2] in chunk.tokens:
                break

    async with serving(checkpoint, [worker]) as gateway:
        async with AsyncClient(gateway.url) as client:
            async with client.generate("hi", stream=True) as stream:
                async for chunk in stream:
                    if TOKENS[2] in chunk.tokens:
                        break
            await worker.cancelled(1)
            assert stream.text == TEXT[:3]
            assert stream.usage is None
        await blocking(gateway.url, leave)
        await worker.cancelled(2)


@asynccontextmanager
async def hung() -> AsyncIterator[str]:
    """URL of what looks alive, and never says a token."""
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        try:
            with suppress(ConnectionError):
                while True:
                    writer.write(b"8\r\n: ping\n\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.02)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"


async def test_a_deadline_holds_whatever_the_gateway_does() -> None:
    async with hung() as url, AsyncClient(url, model=MODEL) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="'total'") as passed:
            await client.generate("hi", deadline=0.3)
        assert passed.value.phase == "total"
        with pytest.raises(DeadlineExceeded, match="'total'"):
            await blocking(url, lambda c: c.generate("hi", deadline=0.4), model=MODEL)
        assert 0.7 <= time.monotonic() - began < LONG


async def test_the_gateways_own_deadlines_name_their_phase(checkpoint: Path) -> None:
    worker = colocated(stop_after=2)
    async with serving(checkpoint, [worker]) as gateway, AsyncClient(gateway.url) as client:
        with pytest.raises(DeadlineExceeded) as passed:
            await client.generate("hi", deadlines={"inter_token": 0.2})
        assert passed.value.phase == "inter_token"
        with pytest.raises(InvalidRequest, match="at most 180 s"):
            await client.generate("hi", deadlines={"first_token": 1000.0})


async def test_a_clusters_workers_are_shown_and_told(checkpoint: Path) -> None:
    worker = colocated()
    async with (
        serving(checkpoint, [worker]) as gateway,
        AsyncClient(gateway.url, admin=gateway.admin_url) as client,
    ):
        cluster = client.cluster()
        [seen] = await cluster.workers()
        assert (seen.address, seen.state, seen.roles) == (worker.address, "healthy", ("decode",))
        assert (seen.model, seen.instance_id) == (MODEL, worker.instance_id)
        assert seen.load["blocks_free"] == worker.blocks_free
        changed = await cluster.set_role(worker.address, "both")
        assert set(changed.roles) == {"prefill", "decode"}
        assert (changed.handed_back, changed.finishing) == (2, 1)
        assert (await cluster.drain(worker.address, grace=0.5)).handed_back == 3
        with pytest.raises(InvalidRequest, match="prefill, decode, both"):
            await cluster.set_role(worker.address, "idle")
        with pytest.raises(InvalidRequest, match="too long"):
            await cluster.drain(worker.address, grace=11.0)
        with pytest.raises(PeerError, match="unavailable"):
            await cluster.set_role(NOWHERE, "decode", grace=0.1)
    roles = [worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE]
    assert worker.told == [
        worker_pb2.SetRolesRequest(roles=roles),
        worker_pb2.DrainRequest(grace_ms=500),
        worker_pb2.DrainRequest(grace_ms=11_000),
    ]


async def test_the_examples_of_the_documentation_run(checkpoint: Path) -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    first, second = colocated(), colocated()
    async with serving(checkpoint, [first]) as a, serving(checkpoint, [second]) as b:
        given = {"http://a:8000": a.url, "http://b:8000": b.url, "http://a:8001": a.admin_url}
        script = "\n".join(examples)
        for url, real in given.items():
            script = script.replace(url, real)
        names: dict[str, Any] = {}
        await asyncio.to_thread(exec, compile(script, "docs/client.md", "exec"), names)
        names["client"].close()
    assert len(examples) == 6
    assert len(first.told) == 2
    assert len(first.submits) + len(second.submits) == 14
