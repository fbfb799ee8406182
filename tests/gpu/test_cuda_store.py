"""Blocks of a CUDA pool as bytes: exact, by every way, while the device computes."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from baton import channels
from baton.identity import new_instance_id
from baton.kv.connections import Connections
from baton.kv.framing import Shape
from baton.kv.grpc_transport import GrpcOutlet, GrpcReader
from baton.kv.shm.outlet import ShmOutlet
from baton.kv.shm.reader import ShmReader
from baton.kv.transport import Outlet, Reader, Sink, Source, Terms
from baton.v1.kv_pb2 import TransportChoice
from model.cache.cuda_store import CudaStore
from model.cache.pool import KvPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = torch.device("cuda", 0)
LAYERS, BLOCKS, BLOCK_SIZE, HEADS, SIZE = 4, 600, 16, 8, 64
#: More than one round through the staging buffer.
SENT = list(np.random.default_rng(1).permutation(BLOCKS)[:300].tolist())
RECEIVED = list(np.random.default_rng(2).permutation(BLOCKS)[:300].tolist())


class Side:
    """A pool of random bytes, and its store."""

    def __init__(self, seed: int) -> None:
        self.pool = KvPool(
            layers=LAYERS,
            num_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            kv_heads=HEADS,
            head_dim=SIZE,
            device=DEVICE,
        )
        self.fill(seed)
        torch.cuda.synchronize(DEVICE)
        self.store = CudaStore(self.pool)

    def fill(self, seed: int) -> None:
        for layer in range(LAYERS):
            self.write(layer, seed)

    def write(self, layer: int, seed: int) -> None:
        """New contents for a layer, on the computing stream."""
        random = torch.Generator(DEVICE).manual_seed(seed * LAYERS + layer)
        self.pool.tensor.view(torch.int16)[layer].random_(generator=random)

    def blocks(self, layer: int, table: list[int]) -> bytes:
        """What is in the pool, read by torch alone."""
        return bytes(self.pool.tensor[layer, table].cpu().numpy().tobytes())


#: A transport between two sides.
Way = Callable[[Side, Side], AbstractAsyncContextManager[tuple[Outlet, Reader, Terms]]]


@pytest.fixture
def there() -> Iterator[Side]:
    side = Side(1)
    yield side
    side.store.close()


@pytest.fixture
def here() -> Iterator[Side]:
    side = Side(2)
    yield side
    side.store.close()


def busy() -> torch.cuda.Event:
    """Some tenths of a second of work on the computing stream; done with the event returned."""
    square = torch.randn(4096, 4096, device=DEVICE)
    for _ in range(200):
        square = torch.mm(square, square).clamp_(-1, 1)
    end = torch.cuda.Event()
    end.record(torch.cuda.current_stream(DEVICE))
    return end


@pytest.mark.parametrize("pinned", [False, True])
async def test_bytes_are_what_torch_reads(there: Side, here: Side, pinned: bool) -> None:
    nbytes = len(SENT) * there.store.block_bytes
    memory = mmap.mmap(-1, nbytes + 4096)
    target = memoryview(memory)[100 : 100 + nbytes]  # off any border
    with there.store.pin(memoryview(memory)) if pinned else nullcontext():
        for layer in range(LAYERS):
            await there.store.read_into(layer, SENT, target)
            expected = there.blocks(layer, SENT)
            assert target == expected
            assert b"".join(await there.store.read(layer, SENT)) == expected
            await here.store.write(layer, RECEIVED, target.toreadonly())
            assert here.blocks(layer, RECEIVED) == expected
    await there.store.read_into(0, SENT, target)  # pinned no more
    assert target == there.blocks(0, SENT)


async def test_read_only_memory_is_pinned_or_said_not_to_be(here: Side) -> None:
    data = mmap.mmap(-1, here.store.block_bytes)
    data[:] = bytes(i * 7 % 256 for i in range(len(data)))
    with here.store.pin(memoryview(data).toreadonly()):
        await here.store.write(0, [5], memoryview(data).toreadonly())
        assert here.blocks(0, [5]) == data[:]
    torch.ones(8, device=DEVICE).sum().item()  # no error is left behind for others


async def test_a_read_waits_for_its_layer_and_not_for_the_stream(there: Side) -> None:
    written, elsewhere = SENT[:10], SENT[10:20]
    busy().synchronize()  # kernels are loaded
    there.store.begin_step(written)
    there.write(0, seed=9)
    there.store.mark_written(0)
    end = busy()
    read = await there.store.read(0, written)
    other = await there.store.read(1, elsewhere)
    assert not end.query(), "both were read while the device computed"
    assert b"".join(read) == there.blocks(0, written)
    assert b"".join(other) == there.blocks(1, elsewhere)


async def test_a_read_does_not_overtake_its_layer(there: Side) -> None:
    there.store.begin_step(SENT)
    busy()
    there.write(2, seed=9)
    there.store.mark_written(2)
    read = await there.store.read(2, SENT)  # begins long before the layer is computed
    assert b"".join(read) == there.blocks(2, SENT)


async def test_the_next_step_does_not_hold_up_a_read_of_the_last(there: Side) -> None:
    there.store.begin_step(SENT[:10])
    there.write(0, seed=9)
    there.store.mark_written(0)
    torch.cuda.synchronize(DEVICE)  # as every step ends
    there.store.begin_step(SENT[10:20])
    end = busy()
    there.store.mark_written(0)
    await there.store.read(0, SENT[:10])
    assert not end.query()


@asynccontextmanager
async def shm(there: Side, here: Side) -> AsyncIterator[tuple[Outlet, Reader, Terms]]:
    instance_id = new_instance_id()
    outlet = ShmOutlet(
        instance_id,
        total_bytes=16 * 2**20,
        block_bytes=there.store.block_bytes,
        pin=there.store.pin,
    )
    await outlet.start()
    assert not outlet.unavailable
    reader = ShmReader(pin=here.store.pin)
    try:
        yield outlet, reader, Terms("there:1", instance_id, b"", TransportChoice(name="shm"))
    finally:
        await reader.close()
        await outlet.close()


@asynccontextmanager
async def grpc(there: Side, here: Side) -> AsyncIterator[tuple[Outlet, Reader, Terms]]:
    outlet, server, connections = GrpcOutlet(3.0), channels.server(), Connections()
    server.add_generic_rpc_handlers((outlet.handler(),))
    port = channels.bind(server, "127.0.0.1", 0)
    await server.start()
    try:
        terms = Terms(f"127.0.0.1:{port}", new_instance_id(), b"", TransportChoice(name="grpc"))
        yield outlet, GrpcReader(connections), terms
    finally:
        await connections.close()
        await server.stop(None)


@pytest.mark.parametrize("transport", [shm, grpc])
async def test_a_hand_off_beside_the_computing(transport: Way, there: Side, here: Side) -> None:
    """Three chunks, each layer announced as soon as it is enqueued; the end is a partial block."""
    end = len(SENT) * BLOCK_SIZE - 5
    shape = Shape(LAYERS, BLOCK_SIZE, there.store.block_bytes, 0, end)
    async with transport(there, here) as (outlet, reader, terms):
        await reader.offer(terms.instance_id)
        offer = outlet.open(Source(shape, there.store, SENT, nullcontext))
        terms = replace(terms, token=offer.token, choice=offer.choice)
        sink = Sink(shape, here.store, RECEIVED)
        reading = asyncio.create_task(reader.read(terms, sink))
        for reached in (100 * BLOCK_SIZE, 200 * BLOCK_SIZE, end):
            first = (reached - 1) // (100 * BLOCK_SIZE) * 100
            blocks = SENT[first : first + 100]
            there.store.begin_step(blocks)
            for layer in range(LAYERS):
                busy()
                fresh = there.pool.tensor.view(torch.int16)[layer, blocks].add_(first + 1)
                there.pool.tensor.view(torch.int16)[layer, blocks] = fresh
                there.store.mark_written(layer)
                offer.ready(layer, reached)
                await asyncio.sleep(0)
            await asyncio.to_thread(torch.cuda.synchronize, DEVICE)
        await reading
        offer.close()
    assert sink.bytes == shape.total_bytes
    for layer in range(LAYERS):
        assert here.blocks(layer, RECEIVED) == there.blocks(layer, SENT)
