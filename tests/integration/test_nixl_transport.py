"""KV over NIXL between outlet and reader: exact, or a typed error; never a leak."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from baton.errors import HandoffFailed, PrefillLost
from baton.identity import new_instance_id
from baton.kv.nixl.outlet import NixlOutlet
from baton.kv.nixl.reader import NixlReader
from baton.kv.transport import Terms
from baton.v1 import kv_pb2
from tests.nixl import needs_nixl, outlet, reader, terms, told
from tests.shm import BLOCK, HandOff, descriptors

pytestmark = needs_nixl

TOKENS = 400


#: gRPC's, of tests before: they come and go when they like.
OTHERS = {"event_engine", "grpc_global_tim", "lifeguard"}


def threads() -> Counter[str]:
    """By name, those that this may have begun."""
    found = Counter[str]()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            found[(task / "comm").read_text().strip()] += 1
    return Counter({name: count for name, count in found.items() if name not in OTHERS})


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """No descriptor, no thread: an agent is wholly gone when it is closed."""
    before, running = descriptors(), threads()
    yield
    gc.collect()  # of the event loop, which is closed by now, and of tracebacks
    assert len(descriptors()) <= len(before), descriptors()
    assert threads() <= running, "of each name no more than before"


async def test_what_arrives_is_what_was_computed() -> None:
    """Bit by bit, all at once, only the end, several at a time; the pair is connected once."""
    whole, end = HandOff(TOKENS), None
    instance = new_instance_id()
    async with outlet(instance, whole) as there, reader(whole) as here:
        assert not (await here.offer(instance)).unavailable
        offer = there.open(whole.source)
        reading = asyncio.create_task(here.read(terms(instance, offer), whole.sink))
        for end in range(0, TOKENS, 3):
            told(whole, end)
            await asyncio.sleep(0)
        assert not reading.done()
        told(whole)
        await reading
        assert whole.arrived and whole.sink.bytes == whole.shape.total_bytes
        assert whole.holds == 1, "until the Prefill call ends"
        offer.close()
        assert not whole.holds

        connected = descriptors()
        for seed, start in ((1, 0), (2, 10 * BLOCK), (3, TOKENS - BLOCK)):
            after = HandOff(TOKENS, seed, start, like=whole)
            offer = there.open(after.source)
            told(after)
            await here.read(terms(instance, offer), after.sink)
            assert after.arrived
            offer.close()
        assert descriptors() == connected

        # Between them they write every block of the pool, some of them twice.
        many = [HandOff(TOKENS, seed, like=whole) for seed in range(4, 12)]
        offers = [there.open(each.source) for each in many]
        async with asyncio.TaskGroup() as tasks:
            for each, opened in zip(many, offers, strict=True):
                tasks.create_task(here.read(terms(instance, opened), each.sink))
                told(each)
        for each, opened in zip(many, offers, strict=True):
            assert each.sink.bytes == each.shape.total_bytes
            opened.close()


async def test_nothing_read_after_the_offer_closed_counts() -> None:
    whole = HandOff(TOKENS)
    instance = new_instance_id()
    async with outlet(instance, whole) as there, reader(whole) as here:
        offer = there.open(whole.source)
        told(whole, TOKENS // 2)
        reading = asyncio.create_task(here.read(terms(instance, offer), whole.sink))
        async with asyncio.timeout(30):
            while not whole.sink.bytes:
                await asyncio.sleep(0.01)
        offer.close()
        assert not whole.holds
        whole.there.pool[:] = 0  # other KV is in the blocks by now
        told(whole)
        with pytest.raises(PrefillLost, match="seal is broken") as failure:
            await reading
        assert failure.value.retryable
        assert not (await here.offer(instance)).unavailable, "the peer did nothing wrong"


async def test_a_cancelled_reader_leaves_the_pair_usable() -> None:
    first = HandOff(TOKENS)
    instance = new_instance_id()
    async with outlet(instance, first) as there, reader(first) as here:
        for turns in (0, 1, 2, 3, 5, 8, 20):
            hand_off = HandOff(TOKENS, turns, like=first)
            offer = there.open(hand_off.source)
            told(hand_off, TOKENS - 8)  # the end never comes
            reading = asyncio.create_task(here.read(terms(instance, offer), hand_off.sink))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            offer.close()
            assert not hand_off.holds
        offer = there.open(first.source)
        told(first)
        await here.read(terms(instance, offer), first.sink)
        assert first.arrived
        offer.close()


async def test_metadata_that_cannot_be() -> None:
    whole = HandOff(TOKENS)
    instance = new_instance_id()
    async with outlet(instance, whole) as there, reader(whole) as here:
        offer = there.open(whole.source)
        told(whole)
        good = kv_pb2.NixlSource.FromString(offer.choice.metadata)

        async def fails(expected: type[Exception], match: str, **changes: object) -> None:
            source = kv_pb2.NixlSource(**{**_fields(good), **changes})
            choice = kv_pb2.TransportChoice(name="nixl", metadata=source.SerializeToString())
            hand_off = HandOff(TOKENS, like=whole)
            told(hand_off)
            with pytest.raises(expected, match=match):
                await here.read(Terms("prefill:1", instance, offer.token, choice), hand_off.sink)

        await fails(HandoffFailed, "block 100000 is none of", blocks=[100000] * 100)
        await fails(HandoffFailed, "there", blocks=list(good.blocks)[:-1])
        await fails(HandoffFailed, "there", block_bytes=good.block_bytes * 2)
        # Beside what is registered: refused before a byte moves.
        await fails(PrefillLost, "reading KV", address=good.address + 2**30)
        assert "given up" in (await here.offer(instance)).unavailable
        offer.close()


def _fields(message: kv_pb2.NixlSource) -> dict[str, object]:
    return {field.name: value for field, value in message.ListFields()}


async def test_only_what_the_hardware_carries_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between hosts without RDMA: given up at once, not emulated over TCP."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    whole = HandOff(TOKENS)
    instance = new_instance_id()
    async with outlet(instance, whole) as there, reader(whole) as here:
        offer = there.open(whole.source)
        told(whole)
        async with asyncio.timeout(20):
            with pytest.raises(PrefillLost, match="connection is lost") as failure:
                await here.read(terms(instance, offer), whole.sink)
        assert failure.value.retryable and not whole.sink.bytes
        assert "given up" in (await here.offer(instance)).unavailable
        offer.close()


async def test_idle_agents_cost_nothing() -> None:
    whole = HandOff(TOKENS)
    instance = new_instance_id()
    async with outlet(instance, whole) as there, reader(whole) as here:
        offer = there.open(whole.source)
        told(whole)
        await here.read(terms(instance, offer), whole.sink)
        for expected, closes in ((0.1, True), (0.05, False)):
            start = time.process_time()
            await asyncio.sleep(2)
            assert time.process_time() - start < 2 * expected
            if closes:
                offer.close()


async def test_without_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("baton.kv.nixl.api.importlib.import_module", missing)
    whole = HandOff(TOKENS)
    there, here = NixlOutlet("prefill", whole.there.region), NixlReader(whole.here.region)
    await there.start()
    await here.start()
    assert "pip install --no-deps nixl nixl-cu13" in there.unavailable
    assert "pip install --no-deps nixl nixl-cu13" in (await here.offer("prefill")).unavailable
    await there.close()
    await here.close()
