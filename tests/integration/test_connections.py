"""Connections between workers: kept while they are well, whatever is said over them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from baton import channels
from baton.errors import HandoffFailed, PrefillFull, PrefillLost, RelayRefused
from baton.kv.connections import Connections
from baton.tls.links import Links
from baton.tls.names import Party
from model.engine.mock_runner import CostModel
from tests.fakes import eventually
from tests.relays import relayed
from tests.workers import cluster, expected, generation, kv_relay, prompt, session


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[grpc.aio.Channel]:
    """Every channel that ``Connections`` opens."""
    made: list[grpc.aio.Channel] = []
    connect: Callable[..., grpc.aio.Channel] = Links.connect

    def remember(*arguments: object, **named: object) -> grpc.aio.Channel:
        channel = connect(*arguments, **named)
        if named.get("shared") is False and Party.DECODE not in arguments:  # no session, no status
            made.append(channel)
        return channel

    monkeypatch.setattr(Links, "connect", remember)
    return made


async def test_a_worker_that_is_full_is_not_dialled_again(dialled: list[grpc.aio.Channel]) -> None:
    async with (
        cluster(decode=2, num_blocks=16, cost=CostModel(step_s=0.2)) as c,
        session(c.decode[0]) as one,
        session(c.decode[1]) as two,
    ):
        await two.submit(generation(prompt(4), max_tokens=2), c.prefill[0]).finished()
        first = one.submit(generation(prompt(40), max_tokens=2), c.prefill[0])
        await eventually(lambda: c.prefill[0].runtime.engine.load().blocks.owned > 0)
        known = len(dialled)
        asked = generation(prompt(40, 3), request_id="2", max_tokens=2)
        error = await two.submit(asked, c.prefill[0]).failed()
        assert isinstance(error, PrefillFull)
        await first.finished()
        again = replace(asked, key=replace(asked.key, attempt=1))
        assert await two.submit(again, c.prefill[0]).finished() == expected(again)
        assert len(dialled) == known


async def test_kv_that_is_damaged_leaves_its_connection_alone(
    dialled: list[grpc.aio.Channel],
) -> None:
    damaged = iter([True])

    async def damage_first(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        change = next(damaged, False)
        async for frame in frames:
            yield frame[:-1] if change else frame

    asked = generation(prompt(40))
    async with (
        kv_relay(damage_first, lambda: c.prefill[0].address) as address,
        cluster(kv_address=address) as c,
        session(c.decode[0]) as s,
    ):
        assert isinstance(await s.submit(asked, c.prefill[0]).failed(), HandoffFailed)
        known = len(dialled)
        again = replace(asked, key=replace(asked.key, attempt=1))
        assert await s.submit(again, c.prefill[0]).finished() == expected(asked)
        assert len(dialled) == known


async def test_a_relay_is_dialled_once_whoever_is_behind_it(
    dialled: list[grpc.aio.Channel],
) -> None:
    """Also when it refuses, and when a worker behind it is lost."""
    asked = [generation(prompt(30, i), request_id=str(i)) for i in range(4)]
    async with (
        relayed(prefill=2, num_blocks=256, kv_transports=["relay"]) as (c, _),
        session(c.decode[0]) as s,
    ):
        for each, worker in zip(asked[:2], c.prefill, strict=True):
            assert await s.submit(each, worker).finished() == expected(each)
        # Of the decode worker two, of the relay two to each prefill worker.
        assert len(dialled) == 2 + 4
        await c.prefill[1].kill()
        error = await s.submit(asked[2], c.prefill[1]).failed()
        assert isinstance(error, PrefillLost | RelayRefused)
        error = await s.submit(asked[2], c.prefill[0], instance_id="f" * 32).failed()
        assert isinstance(error, RelayRefused)
        assert await s.submit(asked[3], c.prefill[0]).finished() == expected(asked[3])
        assert len(dialled) == 2 + 4


_SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    """A server without a service."""
    server = channels.server()
    address = f"127.0.0.1:{channels.bind(server, '127.0.0.1', 0)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def connect(connections: Connections, peer: str, address: str) -> None:
    async with connections.to(peer, address, "test") as connection:
        connection.channel.get_state(try_to_connect=True)
        await eventually(lambda: connection.up)


async def test_channels_of_peers_that_went_away_are_closed(
    dialled: list[grpc.aio.Channel],
) -> None:
    connections = Connections(look_s=0.0)
    async with listening() as stays:
        async with listening() as goes:
            await connect(connections, "goes", goes)
            await connect(connections, "stays", stays)
            await connect(connections, "goes", goes)
            assert len(dialled) == 2
        await eventually(lambda: connections.connected() == {"stays"})
        await connect(connections, "stays", stays)
        assert [each.get_state() is _SHUTDOWN for each in dialled] == [True, False]
    await connections.close()


async def test_a_channel_in_use_is_left_to_its_user(dialled: list[grpc.aio.Channel]) -> None:
    """It may not be connected yet."""
    connections = Connections(look_s=0.0)
    async with listening() as address, connections.to("first", address, "test"):
        await connect(connections, "second", address)
        assert dialled[0].get_state() is not _SHUTDOWN
    await connections.close()


async def test_a_lost_channel_is_closed_with_its_last_user(
    dialled: list[grpc.aio.Channel],
) -> None:
    """Who uses it on leaves alone what was dialled since."""
    connections = Connections()
    async with listening() as address:
        async with connections.to("peer", address, "test"):
            async with connections.to("peer", address, "test") as found:
                found.lost = True
            await connect(connections, "peer", address)
            assert dialled[0].get_state() is not _SHUTDOWN
        assert [each.get_state() is _SHUTDOWN for each in dialled] == [True, False]
    await connections.close()
