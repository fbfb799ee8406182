"""KV through shared memory between outlet and reader: exact, or a typed error; never a leak."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from baton.errors import HandoffFailed, PrefillLost
from baton.identity import new_instance_id
from baton.kv.framing import Piece
from baton.kv.shm.messages import Filled, decode, encode
from baton.kv.shm.outlet import ShmOutlet
from baton.kv.shm.reader import ShmReader
from baton.kv.shm.segment import Geometry, Segment
from baton.kv.shm.wire import listen, name_of
from tests.lines import Data
from tests.shm import (
    BLOCK,
    BLOCK_BYTES,
    RING_BYTES,
    HandOff,
    between,
    descriptors,
    memories,
    outlet,
    reader,
    terms,
)

ID = new_instance_id()  # other runs of these tests may be under way


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    gc.collect()  # of the event loop, which is closed by now, and of tracebacks
    assert len(descriptors()) <= len(before), descriptors()
    assert memories() == 0


async def until(true: object, what: str) -> None:
    async with asyncio.timeout(20):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.01)


# -- exact -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, BLOCK, BLOCK + 1, 8 * BLOCK, 203])
async def test_what_arrives_is_what_was_computed(tokens: int) -> None:
    hand_off = HandOff(tokens)
    async with outlet(ID) as there, reader() as here:
        assert not (await here.offer(ID)).unavailable
        offer = there.open(hand_off.source)
        reading = asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
        for end in range(0, tokens + 1, 3):  # computed bit by bit
            hand_off.compute(offer, end)
            await asyncio.sleep(0)
        hand_off.compute(offer)
        await reading
        assert hand_off.arrived
        assert hand_off.sink.bytes == hand_off.shape.total_bytes
        assert not hand_off.holds


async def test_only_the_end_is_wanted() -> None:
    hand_off = HandOff(100, start=60)
    async with outlet(ID) as there, reader() as here:
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        await here.read(terms(ID, offer.token), hand_off.sink)
        assert hand_off.arrived


async def test_many_share_one_ring() -> None:
    hand_offs = [HandOff(50 + 30 * i, seed=i) for i in range(12)]
    async with outlet(ID) as there, reader() as here, asyncio.TaskGroup() as tasks:
        for hand_off in hand_offs:
            offer = there.open(hand_off.source)
            tasks.create_task(here.read(terms(ID, offer.token), hand_off.sink))
            hand_off.compute(offer)
        await asyncio.sleep(0.05)
        assert memories() == 2
    assert all(hand_off.arrived for hand_off in hand_offs)


async def test_the_link_is_kept_and_is_one() -> None:
    async with outlet(ID) as there, reader() as here:
        await asyncio.gather(*(here.offer(ID) for _ in range(5)))
        held = descriptors()
        assert memories() == 2
        for seed in range(5):
            hand_off = HandOff(70, seed)
            offer = there.open(hand_off.source)
            hand_off.compute(offer)
            await here.read(terms(ID, offer.token), hand_off.sink)
            assert hand_off.arrived
        assert descriptors() == held


async def test_both_ends_pin_their_memory_while_the_link_lasts() -> None:
    pinned: list[tuple[int, bool]] = []

    @contextmanager
    def pin(memory: memoryview) -> Iterator[None]:
        assert threading.current_thread() is not threading.main_thread(), "it takes long"
        pinned.append(of := (memory.nbytes, memory.readonly))
        yield
        pinned.remove(of)

    hand_off = HandOff(100)
    there = ShmOutlet(ID, total_bytes=RING_BYTES, block_bytes=BLOCK_BYTES, pin=pin)
    here = ShmReader(pin=pin)
    await there.start()
    offer = there.open(hand_off.source)
    hand_off.compute(offer)
    await here.read(terms(ID, offer.token), hand_off.sink)
    assert sorted(pinned) == [(RING_BYTES, False), (RING_BYTES, True)]
    await here.close()
    await there.close()
    assert hand_off.arrived and not pinned


# -- tokens ----------------------------------------------------------------------------------


async def test_a_token_opens_one_reading_of_one_open_offer() -> None:
    hand_off, again = HandOff(40), HandOff(40)
    async with outlet(ID) as there, reader() as here:
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        with pytest.raises(PrefillLost, match="no such hand-off"):
            await here.read(terms(ID, os.urandom(16)), again.sink)
        await here.read(terms(ID, offer.token), hand_off.sink)
        with pytest.raises(PrefillLost, match="no such hand-off"):
            await here.read(terms(ID, offer.token), again.sink)
        closed = there.open(again.source)
        closed.close()
        with pytest.raises(PrefillLost, match="no such hand-off"):
            await here.read(terms(ID, closed.token), again.sink)
        assert hand_off.arrived and not again.sink.bytes


# -- cancelled -------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 20, 40, 80])
@pytest.mark.parametrize("side", ["reader", "offer"])
async def test_cancelled_at_any_stage_the_ring_is_whole_again(side: str, turns: int) -> None:
    hand_off, after = HandOff(400), HandOff(400, seed=1)
    async with outlet(ID) as there, reader() as here:
        await here.offer(ID)
        offer = there.open(hand_off.source)
        hand_off.compute(offer, 392)  # the end never comes
        reading = asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
        for _ in range(turns):
            await asyncio.sleep(0)
        if side == "reader":
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        offer.close()
        if side == "offer":
            with pytest.raises(PrefillLost):
                await reading
        await until(lambda: not hand_off.holds, "the hold is given up")
        offer = there.open(after.source)
        after.compute(offer)
        await here.read(terms(ID, offer.token), after.sink)
        assert after.arrived


async def test_the_prefill_side_leaves_in_mid_transfer() -> None:
    hand_off = HandOff(400)
    async with reader() as here:
        async with outlet(ID) as there:
            offer = there.open(hand_off.source)
            hand_off.compute(offer, 200)
            reading = asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
            await until(lambda: hand_off.sink.bytes, "the first blocks")
        assert not hand_off.holds
        with pytest.raises((PrefillLost, HandoffFailed)):
            await reading
        await until(lambda: not memories(), "the memory is free")
        assert (await here.offer(ID)).unavailable


async def test_the_decode_side_leaves_in_mid_transfer() -> None:
    hand_off = HandOff(400)
    async with outlet(ID) as there:
        async with reader() as here:
            offer = there.open(hand_off.source)
            hand_off.compute(offer, 200)
            reading = asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
            await until(lambda: hand_off.sink.bytes, "the first blocks")
        with pytest.raises(PrefillLost, match="leaving"):
            await reading
        await until(lambda: not memories(), "the memory is free")
        assert not hand_off.holds


@pytest.mark.parametrize("side", ["here", "there"])
async def test_a_copy_under_way_ends_before_its_blocks_go(side: str) -> None:
    """And keeps the memory no longer than that."""
    hand_off = HandOff(40)
    store = hand_off.there if side == "there" else hand_off.here
    store.gate.clear()
    async with outlet(ID) as there, reader() as here:
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        reading = asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
        await until(lambda: store.copying, "a copy")
        offer.close()
        reading.cancel()
        leaving = asyncio.gather(here.close(), there.close())
        await asyncio.sleep(0.05)
        assert not reading.done() if side == "here" else hand_off.holds
        store.gate.set()
        await leaving
        with pytest.raises((asyncio.CancelledError, PrefillLost)):
            await reading
        await until(lambda: not hand_off.holds and not memories(), "all is given up")


async def test_a_store_that_fails() -> None:
    hand_off = HandOff(40)

    async def broken(piece: Piece, target: memoryview) -> None:
        raise RuntimeError("no such pool")

    class Broken(type(hand_off.source)):  # type: ignore[misc]
        read_into = staticmethod(broken)

    source = Broken(hand_off.shape, hand_off.source.store, [0] * 10, hand_off.source.hold)
    async with outlet(ID) as there, reader() as here:
        offer = there.open(source)
        hand_off.compute(offer)
        with pytest.raises(PrefillLost, match="no such pool"):
            await here.read(terms(ID, offer.token), hand_off.sink)
        assert not hand_off.holds


# -- notifications that are lost, repeated, damaged --------------------------------------------

#: Of the prefill side: Hello, Proven, then what is told of pieces.
AT = 4


def _drop(number: int, data: Data) -> list[Data]:
    return [] if number == AT else [data]


def _repeat(number: int, data: Data) -> list[Data]:
    return [data, data] if number == AT else [data]


def _truncate(number: int, data: Data) -> list[Data]:
    return [(data[0][:-3], data[1])] if number == AT else [data]


def _damage(number: int, data: Data) -> list[Data]:
    if number != AT:
        return [data]
    return [(bytes([*data[0][:8], data[0][8] ^ 1, *data[0][9:]]), data[1])]


def _forge(number: int, data: Data) -> list[Data]:
    """Well-formed, but of a slot that is full already."""
    if number != AT:
        return [data]
    filled = decode(number, data[0])
    assert isinstance(filled, Filled)
    return [(encode(number, filled._replace(slot=(filled.slot - 1) % 4)), [])]


def _misplace(number: int, data: Data) -> list[Data]:
    """Well-formed, but of other tokens."""
    if number != AT:
        return [data]
    filled = decode(number, data[0])
    assert isinstance(filled, Filled)
    moved = filled._replace(start=filled.start + BLOCK, end=filled.end + BLOCK)
    return [(encode(number, moved), [])]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("tamper", [_drop, _repeat, _truncate, _damage])
async def test_a_notification_that_is_not_right_breaks_the_link(
    direction: str, tamper: object
) -> None:
    hand_off = HandOff(400)
    async with (
        outlet(ID) as there,
        between(ID, **{direction: tamper}) as locate,  # type: ignore[arg-type]
        reader(locate) as here,
    ):
        assert not (await here.offer(ID)).unavailable
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        with pytest.raises(HandoffFailed) as failure:
            async with asyncio.timeout(20):
                await here.read(terms(ID, offer.token), hand_off.sink)
        assert failure.value.retryable
        assert hand_off.sink.bytes < hand_off.shape.total_bytes or direction == "up"
        await until(lambda: not hand_off.holds, "the hold is given up")
        assert "given up" in (await here.offer(ID)).unavailable


@pytest.mark.parametrize("tamper", [_forge, _misplace])
async def test_a_notification_that_cannot_be_fails_the_hand_off(tamper: object) -> None:
    hand_off = HandOff(400)
    async with (
        outlet(ID) as there,
        between(ID, down=tamper) as locate,  # type: ignore[arg-type]
        reader(locate) as here,
    ):
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        with pytest.raises(HandoffFailed):
            async with asyncio.timeout(20):
                await here.read(terms(ID, offer.token), hand_off.sink)
        await until(lambda: not hand_off.holds, "the hold is given up")


# -- no proof, no link -------------------------------------------------------------------------


async def test_nobody_is_there() -> None:
    async with reader() as here:
        assert "no process there" in (await here.offer("another host's")).unavailable


async def test_memory_of_somebody_else_is_no_proof() -> None:
    other = Segment(Geometry.fit(RING_BYTES, 2**20, 512))
    other.reserve()

    def swap(number: int, data: Data) -> list[Data]:
        return [(data[0], [other.descriptor])] if number == 0 else [data]

    async with outlet(ID), between(ID, down=swap) as locate, reader(locate) as here:
        assert "has not read" in (await here.offer(ID)).unavailable
        await until(lambda: memories() == 2, "only the other memory is left")
    other.close()


async def test_no_descriptor_arrives() -> None:
    def strip(_: int, data: Data) -> list[Data]:
        return [(data[0], [])]

    async with outlet(ID), between(ID, down=strip) as locate, reader(locate) as here:
        assert (await here.offer(ID)).unavailable


async def test_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    async with outlet(ID), reader() as here:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert "user" in (await here.offer(ID)).unavailable


async def test_a_peer_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("baton.kv.shm.reader.PATIENCE", 0.3)
    listener = listen(name_of(ID))
    async with reader() as here:
        async with asyncio.timeout(20):
            assert "did not answer" in (await here.offer(ID)).unavailable
        listener.close()


async def test_a_ring_too_small_for_two_blocks() -> None:
    made = ShmOutlet(ID, total_bytes=5000, block_bytes=512)
    await made.start()
    assert "do not fit in 5000" in made.unavailable
    await made.close()


async def test_a_dial_that_nobody_waits_for_any_more_ends() -> None:
    async with outlet(ID):
        here = ShmReader()
        asking = asyncio.create_task(here.offer(ID))
        await asyncio.sleep(0)
        asking.cancel()
        await here.close()


async def test_very_many_begin_and_are_given_up_at_once() -> None:
    """More messages than the socket takes: they wait, and the link is kept."""
    kept, given_up = HandOff(100), [HandOff(4) for _ in range(600)]
    async with outlet(ID) as there, reader() as here:
        assert not (await here.offer(ID)).unavailable
        offers = [there.open(hand_off.source) for hand_off in (kept, *given_up)]
        readings = [
            asyncio.create_task(here.read(terms(ID, offer.token), hand_off.sink))
            for offer, hand_off in zip(offers, (kept, *given_up), strict=True)
        ]
        await asyncio.sleep(0)
        for reading in readings[1:]:
            reading.cancel()
        kept.compute(offers[0])
        await readings[0]
        assert kept.arrived
        await asyncio.gather(*readings, return_exceptions=True)
        assert not (await here.offer(ID)).unavailable
        for offer in offers:
            offer.close()
        await until(lambda: not any(h.holds for h in given_up), "all is given up")


async def test_what_became_urgent_when_it_was_over_does_not_count() -> None:
    """Or the link would never rest again."""
    async with outlet(ID) as there, reader() as here:
        hand_off = HandOff(20)
        hand_off.sink.urgent = False
        offer = there.open(hand_off.source)
        hand_off.compute(offer)
        await here.read(terms(ID, offer.token), hand_off.sink)
        hand_off.sink.hurry()
        (link,) = here._links.values()
        assert not link._urgent
