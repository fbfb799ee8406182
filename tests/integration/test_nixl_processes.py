"""The prefill side of a NIXL pair is killed, stopped or started again."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from baton.errors import PrefillLost
from baton.identity import new_instance_id
from baton.kv.transport import Terms
from tests.nixl import needs_nixl, parse, reader, told
from tests.shm import HandOff

pytestmark = needs_nixl

#: 64 MB, so that it takes some time over TCP.
TOKENS = 180_000


@asynccontextmanager
async def prefill_side(tokens: int) -> AsyncIterator[tuple[Process, Terms]]:
    """``python -m tests.nixl``, and how its offer is read."""
    instance_id = new_instance_id()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.nixl", instance_id, str(tokens), stdout=PIPE, limit=2**24
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(60):
            line = (await child.stdout.readline()).decode()
        yield child, parse(instance_id, line)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def until(true: object) -> None:
    async with asyncio.timeout(60):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_killed_in_mid_transfer_and_started_again() -> None:
    tokens = 2000
    hand_off = HandOff(tokens)
    async with reader(hand_off) as here:
        async with prefill_side(tokens) as (child, there):
            told(hand_off, tokens // 2)
            reading = asyncio.create_task(here.read(there, hand_off.sink))
            await until(lambda: hand_off.sink.bytes)
            child.kill()
            await child.wait()
            told(hand_off)
            async with asyncio.timeout(60):
                with pytest.raises(PrefillLost) as failure:
                    await reading
            assert failure.value.retryable
            assert (await here.offer(there.instance_id)).unavailable
        again = HandOff(tokens, like=hand_off)
        async with prefill_side(tokens) as (_, there):  # the same address, another instance
            assert not (await here.offer(there.instance_id)).unavailable
            told(again)
            await here.read(there, again.sink)
            # Its pool has the same bytes as every pool of that seed.
            assert again.arrived


async def test_a_stopped_peer_cannot_keep_blocks_nor_write_to_them_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulated over TCP, the one way in which a peer's help is needed, and forbidden otherwise."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.setenv("UCX_PROTO_EMULATION_ENABLE", "y")
    hand_off = HandOff(TOKENS)
    pool = hand_off.here.pool
    async with reader(hand_off) as here, prefill_side(TOKENS) as (child, there):
        pool[:] = 0
        told(hand_off)
        reading = asyncio.create_task(here.read(there, hand_off.sink))
        await until(pool.any)
        child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.2)  # what the kernel still holds arrives
        assert not reading.done()
        reading.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await reading
        pool[:] = 0  # the blocks are free from here on
        child.send_signal(signal.SIGCONT)
        await asyncio.sleep(1)
        assert not pool.any(), "bytes landed in blocks that had been given up"

        # The agent was given up for it; another is started, and that peer is not used again.
        await here.offer("another")
        async with asyncio.timeout(60):
            while (await here.offer("another")).unavailable:
                await asyncio.sleep(0.05)
        assert "did not end" in (await here.offer(there.instance_id)).unavailable
