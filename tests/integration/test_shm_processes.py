"""Two processes share memory and one is killed in mid-transfer: the kernel takes back all."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton.errors import PrefillLost
from baton.identity import new_instance_id
from baton.kv.shm import MEMORY_NAME
from tests.shm import HandOff, descriptors, memories, outlet, reach, reader, terms

TOKENS = 2000


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[Process]:
    """``python -m tests.shm`` with these arguments."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shm", *arguments, stdout=PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def until(true: object, what: str) -> None:
    async with asyncio.timeout(60):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.01)


def shared_files() -> list[Path]:
    """Of ours; OpenMP and browsers of other tests have theirs there."""
    return list(Path("/dev/shm").glob(f"*{MEMORY_NAME}*"))


async def closed(before: list[str]) -> None:
    """Nothing of the link is left: no memory, no socket."""
    gc.collect()
    await until(lambda: {*descriptors()} <= {*before} and not memories(), "all is closed")


@pytest.mark.parametrize("stopped_first", [False, True])
async def test_the_prefill_side_is_killed(stopped_first: bool) -> None:
    instance_id = new_instance_id()
    async with process(instance_id, str(TOKENS)) as child, reader() as here:
        assert child.stdout is not None
        token = bytes.fromhex((await child.stdout.readline()).decode())
        before = descriptors()
        hand_off = HandOff(TOKENS)
        await reach(here, instance_id)
        reading = asyncio.create_task(here.read(terms(instance_id, token), hand_off.sink))
        half = hand_off.shape.total_bytes // 2
        await until(lambda: hand_off.sink.bytes >= half, "the half that was computed")
        if stopped_first:
            child.send_signal(signal.SIGSTOP)
        child.kill()
        with pytest.raises(PrefillLost) as failure:
            async with asyncio.timeout(30):
                await reading
        assert failure.value.retryable
        del reading, failure
        await closed(before)
        assert "no process there" in (await here.offer(instance_id)).unavailable
    assert shared_files() == []


@pytest.mark.parametrize("stopped_first", [False, True])
async def test_the_decode_side_is_killed(stopped_first: bool) -> None:
    instance_id = new_instance_id()
    async with outlet(instance_id) as there:
        hand_off = HandOff(TOKENS)
        offer = there.open(hand_off.source)
        hand_off.compute(offer, TOKENS // 2)
        async with process(instance_id, offer.token.hex(), str(TOKENS), "read") as child:
            before = descriptors()
            await until(lambda: hand_off.holds and memories(), "the reading")
            if stopped_first:
                child.send_signal(signal.SIGSTOP)
                hand_off.compute(offer)
                await asyncio.sleep(0.1)  # the ring is full
                assert hand_off.holds
            child.kill()
            await until(lambda: not hand_off.holds, "the blocks are given up")
            await closed(before)
    assert shared_files() == []


async def test_a_stopped_decode_side_does_not_hold_blocks_of_a_closed_offer() -> None:
    instance_id = new_instance_id()
    async with outlet(instance_id) as there:
        hand_off = HandOff(TOKENS)
        offer = there.open(hand_off.source)
        hand_off.compute(offer, TOKENS // 2)
        async with process(instance_id, offer.token.hex(), str(TOKENS), "read") as child:
            await until(lambda: hand_off.holds, "the reading")
            child.send_signal(signal.SIGSTOP)
            hand_off.compute(offer)
            offer.close()  # as the Prefill call does when its peer is silent
            await until(lambda: not hand_off.holds, "the blocks are given up")
