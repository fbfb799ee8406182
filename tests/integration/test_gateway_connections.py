"""What a connection may do before, and instead of, asking properly: raw bytes on a socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import MODEL, FakeWorker, answering, eventually, write_checkpoint
from tests.gateways import Gateway, serving

BODY = json.dumps({"model": MODEL, "prompt": "hi"}).encode()
ASK = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(BODY)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


@asynccontextmanager
async def gateway(checkpoint: Path, **settings: Any) -> AsyncIterator[Gateway]:
    worker = FakeWorker(local_prefill=True, script=answering("hello", pause=0.05))
    async with serving(checkpoint, [worker], **settings) as served:
        yield served


class Connection:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of the next answer."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            body = json.loads(await self._reader.readexactly(length))
        return int(head.split()[1]), body

    async def until_closed(self) -> bytes:
        """What still comes."""
        async with asyncio.timeout(20):
            return await self._reader.read()


@asynccontextmanager
async def connected(gateway: Gateway) -> AsyncIterator[Connection]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head", [b"", b"POST", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nhost: x\r\nx-a"]
)
async def test_a_head_that_never_ends_is_given_up(checkpoint: Path, head: bytes) -> None:
    async with gateway(checkpoint, head_timeout=0.3) as served, connected(served) as raw:
        await raw.send(head)
        status, body = await raw.answer()
        assert (status, body["error"]["code"]) == (408, "head_timeout")
        assert await raw.until_closed() == b""


async def test_a_connection_too_many_is_refused_and_closed(checkpoint: Path) -> None:
    async with gateway(checkpoint, max_connections=2) as served:
        async with connected(served) as one, connected(served) as two:
            for raw in (one, two):
                await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await raw.answer())[0] == 200
            async with connected(served) as surplus:
                status, body = await surplus.answer()
                assert (status, body["error"]["code"]) == (503, "too_many_connections")
                assert "at most 2" in body["error"]["message"]
                assert await surplus.until_closed() == b""
            refused = served.metric(
                "baton_refused_connections_total", reason="too_many_connections"
            )
            assert refused == 1
            await one.send(ASK + b"\r\n" + BODY)
            assert (await one.answer())[0] == 200, "those that are open go on"

        async def accepted() -> bool:
            async with connected(served) as raw:
                await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                return (await raw.answer())[0] == 200

        async with asyncio.timeout(30):
            while not await accepted():
                await asyncio.sleep(0.01)


async def test_a_slow_head_after_a_first_request(checkpoint: Path) -> None:
    async with gateway(checkpoint, head_timeout=0.4) as served, connected(served) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await raw.answer())[0] == 200
        await raw.send(b"GET /health HT")
        assert (await raw.answer())[0] == 408


async def test_an_answer_may_take_longer_than_a_head(checkpoint: Path) -> None:
    async with gateway(checkpoint, head_timeout=0.1) as served, connected(served) as raw:
        await raw.send(ASK + b"\r\n" + BODY + b"GET /hea")  # the next one waits for its turn
        status, body = await raw.answer()
        assert (status, body["choices"][0]["text"]) == (200, "hello")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"x-long: " + b"a" * 40_000, "32768 are allowed"),
        (b"".join(b"x-%d: a\r\n" % i for i in range(200)), "more than 100 fields"),
        (b"".join(b"x-%d: %s\r\n" % (i, b"a" * 500) for i in range(90)), "32768 are allowed"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_head_that_is_too_large(
    checkpoint: Path, head: bytes, says: str, whole: bool
) -> None:
    ending = b"\r\n\r\n" if whole else b""
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(ASK + head + ending)
        status, body = await raw.answer()
        assert (status, body["error"]["code"]) == (431, "head_too_large")
        assert says in body["error"]["message"]
        assert (await served.complete()).status_code == 200


async def test_a_long_url(checkpoint: Path) -> None:
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(b"GET /" + b"a" * 100_000)
        assert (await raw.answer())[0] == 431


@pytest.mark.parametrize(
    "offer",
    [
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
        b"Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0\r\n",
    ],
)
@pytest.mark.parametrize("split", [0, 1, 40])
async def test_an_offer_to_upgrade_is_ignored(checkpoint: Path, offer: bytes, split: int) -> None:
    """As RFC 9110 allows: the answer is to the whole request, over HTTP/1.1."""
    request = ASK + offer + b"\r\n" + BODY
    cut = len(request) - split
    async with gateway(checkpoint) as served, connected(served) as raw:
        for _ in range(2):  # on one connection
            await raw.send(request[:cut])
            await asyncio.sleep(0.05)
            await raw.send(request[cut:])
            status, body = await raw.answer()
            assert (status, body["choices"][0]["text"]) == (200, "hello")
        await raw.send(
            offer.join([b"GET /health HTTP/1.1\r\nhost: x\r\n", b"connection: close\r\n\r\n"])
        )
        assert (await raw.answer())[0] == 200
        assert await raw.until_closed() == b""


async def test_a_chunked_body_behind_an_offer(checkpoint: Path) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    )
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(head + chunked)
        assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    ("nonsense", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        (b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET \xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (ASK + b"content-length: 3\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_what_is_no_request_is_refused(
    checkpoint: Path, nonsense: bytes, status: int
) -> None:
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(nonsense)
        answered, body = await raw.answer()
        assert answered == status
        assert body["error"]["type"] == "invalid_request_error"
        assert (await served.complete()).status_code == 200


@asynccontextmanager
async def dripping(raw: Connection, data: bytes) -> AsyncIterator[None]:
    """So much now and then, while the block runs or until the connection ends."""

    async def drip() -> None:
        with suppress(ConnectionError):
            while True:
                await raw.send(data)
                await asyncio.sleep(0.01)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


CHUNKED = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begin", [b"1\r\n{\r\n0\r\nx-trailer: ", b"1;", b"1\r\n{\r\n5;x="])
async def test_a_body_of_nothing_but_framing_ends(checkpoint: Path, begin: bytes) -> None:
    """A trailer, and chunks' extensions: no application sees them, and none would end."""
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(CHUNKED + begin)
        async with dripping(raw, b"a" * 10_000):
            with suppress(ConnectionError):
                assert b"431" in await raw.until_closed()
        assert (await served.complete()).status_code == 200


async def test_a_body_in_many_small_chunks_is_read(checkpoint: Path) -> None:
    chunks = b"".join(b"1;name=%s\r\n%c\r\n" % (b"a" * 2000, byte) for byte in BODY)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(head + chunks + b"0\r\n\r\n")
        assert (await raw.answer())[0] == 200


async def test_the_rest_of_a_body_after_its_answer_ends_soon(checkpoint: Path) -> None:
    async with gateway(checkpoint, head_timeout=0.3) as served, connected(served) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n")
        assert (await raw.answer())[0] == 200
        async with dripping(raw, b"a"):
            with suppress(ConnectionError):
                assert await raw.until_closed() == b""


async def test_who_sends_a_body_late_is_answered_as_before(checkpoint: Path) -> None:
    async with gateway(checkpoint) as served, connected(served) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n")
        assert (await raw.answer())[0] == 200
        await raw.send(b"abc" + ASK + b"\r\n" + BODY)
        assert (await raw.answer())[0] == 200


async def test_requests_in_a_row_are_bounded(checkpoint: Path) -> None:
    many = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 20
    async with gateway(checkpoint) as served:
        async with connected(served) as raw:
            await raw.send(ASK + b"\r\n" + BODY + many)
            for _ in range(21):
                assert (await raw.answer())[0] == 200
        async with connected(served) as raw:
            await raw.send(ASK + b"\r\n" + BODY + many * 10)
            assert await raw.until_closed() == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone can")
async def test_who_takes_no_answer_is_let_go(checkpoint: Path) -> None:
    """Also where the answer is whole, and only its last bytes have not gone out."""
    async with gateway(checkpoint, write_timeout=0.2) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            ours = f":{int(port):04X} 0100007F:{deaf.getsockname()[1]:04X} "
            connections = Path("/proc/net/tcp")
            await eventually(lambda: ours in connections.read_text())
            await eventually(lambda: ours not in connections.read_text())
