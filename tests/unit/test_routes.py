"""Which way Prefill calls go, with sockets that answer, refuse, or say nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from baton.cli import ports
from decode_worker.routes import Route, Routes

RELAY = "relay:8100"
ANY = ("shm", "grpc", "relay")


@contextmanager
def listening(port: int = 0, *, full: bool = False) -> Iterator[str]:
    """An address that takes connections; ``full``: that leaves them waiting."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen(0 if full else 16)
        queued = [socket.socket() for _ in range(4 if full else 0)]
        for each in queued:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            for each in queued:
                each.close()


async def test_directly_where_that_is_possible() -> None:
    with listening() as address:
        for way in (Routes(RELAY, ANY), Routes(None, ANY), Routes(RELAY, ("shm", "grpc"))):
            assert await way.to("p", address) == Route()


async def test_nothing_is_dialled_without_a_choice() -> None:
    nowhere = "127.0.0.1:1"
    assert await Routes(None, ANY).to("p", nowhere) == Route()
    assert await Routes(RELAY, ("shm", "grpc")).to("p", nowhere) == Route()
    assert await Routes(RELAY, ("relay",)).to("p", nowhere) == Route(RELAY)
    assert await Routes(RELAY, ("shm", "relay")).to("p", nowhere) == Route(RELAY)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no such host:7", "localhost"])
async def test_by_relay_where_nothing_answers(address: str) -> None:
    route = await Routes(RELAY, ANY).to("p", address)
    assert route.relay == RELAY
    assert route.why.startswith(f"{address} could not be reached: ")


async def test_by_relay_where_it_takes_too_long() -> None:
    with listening(full=True) as address:
        route = await Routes(RELAY, ANY, reach=0.2).to("p", address)
    assert (route.relay, route.why) == (RELAY, f"{address} could not be reached within 0.2 s")


async def test_a_relayed_instance_is_tried_directly_again() -> None:
    port, way = next(ports.free("127.0.0.1")), Routes(RELAY, ANY, again=1.0)
    address = f"127.0.0.1:{port}"
    assert (await way.to("p", address)).relay
    with listening(port):
        assert (await way.to("p", address)).relay  # not so soon
        await asyncio.sleep(1.0)
        assert (await way.to("p", address)).relay  # nobody waits for it
        async with asyncio.timeout(10):
            while (await way.to("p", address)).relay:
                await asyncio.sleep(0.01)
    assert await way.to("p", address) == Route()  # as long as calls succeed
    way.lost("p")
    assert (await way.to("p", address)).relay
    await way.close()


def test_what_cannot_carry_kv_beside_a_call() -> None:
    direct, relayed, forced = Route(), Route(RELAY, "far away"), Route(RELAY)
    assert [direct.obstacle(name) for name in ANY] == [
        "",
        "",
        "the prefill worker is reached directly",
    ]
    assert [relayed.obstacle(name) for name in ANY] == ["", "far away", ""]
    assert relayed.obstacle("nixl") == "far away"
    assert forced.obstacle("relay") == ""
