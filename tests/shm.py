"""Hand-offs through shared memory without workers, and what comes between the two ends.

``python -m tests.shm INSTANCE TOKENS`` is a prefill side of its own, for tests that kill it: it
prints the token of an offer of which the second half is never computed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baton.kv.checksums import SUM_BYTES
from baton.kv.framing import Shape
from baton.kv.shm.outlet import ShmOffer, ShmOutlet
from baton.kv.shm.reader import ShmReader
from baton.kv.shm.segment import unpinned
from baton.kv.shm.wire import name_of
from baton.kv.transport import Region, Sink, Source, Terms, started
from baton.v1 import kv_pb2
from tests.lines import Data, ShmLine, Tamper, passing

LAYERS, BLOCK, BLOCK_BYTES = 3, 4, 512
#: A page, and four slots of two blocks with their checksums.
RING_BYTES = 4096 + 4 * 2 * (BLOCK_BYTES + SUM_BYTES)


class MemoryStore:
    """A pool of bytes that differ everywhere. Implements ``Store``."""

    def __init__(self, blocks: int, seed: int = 0) -> None:
        shape = (LAYERS, blocks, BLOCK_BYTES)
        self.pool: npt.NDArray[np.uint8] = np.random.default_rng(seed).integers(
            0, 256, shape, dtype=np.uint8
        )
        self.gate = asyncio.Event()  #: cleared: copies do not end
        self.gate.set()
        self.copying = 0

    @asynccontextmanager
    async def _copy(self) -> AsyncIterator[None]:
        self.copying += 1
        await self.gate.wait()
        yield
        self.copying -= 1

    @property
    def region(self) -> Region:
        return Region(self.pool.ctypes.data, *self.pool.shape)

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        tell()

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        return [memoryview(self.pool[layer, block]) for block in blocks]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        rows = np.frombuffer(target, dtype=np.uint8).reshape(len(blocks), -1)
        async with self._copy():
            rows[:] = self.pool[layer, list(blocks)]

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        rows = np.frombuffer(data, dtype=np.uint8).reshape(len(blocks), -1)
        async with self._copy():
            self.pool[layer, list(blocks)] = rows

    pin = staticmethod(unpinned)


class HandOff:
    """A prompt's KV on one side, the place for it on the other."""

    def __init__(
        self, tokens: int, seed: int = 0, start: int = 0, like: HandOff | None = None
    ) -> None:
        """``like`` another of as many tokens: between the same pools."""
        self.shape = Shape(LAYERS, BLOCK, BLOCK_BYTES, start, tokens)
        count = -(-tokens // BLOCK)
        rng = np.random.default_rng(seed)
        self._from: list[int] = rng.permutation(count * 2)[:count].tolist()
        self._to: list[int] = rng.permutation(count * 2)[:count].tolist()
        self.there = like.there if like else MemoryStore(count * 2, seed)
        self.here = like.here if like else MemoryStore(count * 2, seed + 1)
        self.holds = 0
        self.source = Source(self.shape, self.there, self._from, self._hold)
        self.sink = Sink(self.shape, self.here, self._to)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1

    @property
    def arrived(self) -> bool:
        """Every block that is wanted is here, as it is there."""
        first = self.shape.start // BLOCK
        there, here = self._from[first:], self._to[first:]
        return bool((self.there.pool[:, there] == self.here.pool[:, here]).all())

    def compute(self, offer: ShmOffer, end: int | None = None) -> None:
        for layer in range(LAYERS):
            offer.ready(layer, self.shape.end if end is None else end)


def terms(instance_id: str, token: bytes) -> Terms:
    return Terms("prefill:1", instance_id, token, kv_pb2.TransportChoice(name="shm"))


@asynccontextmanager
async def outlet(instance_id: str, total_bytes: int = RING_BYTES) -> AsyncIterator[ShmOutlet]:
    made = ShmOutlet(instance_id, total_bytes=total_bytes, block_bytes=BLOCK_BYTES)
    async with started([made]):
        assert not made.unavailable, made.unavailable
        yield made


@asynccontextmanager
async def reader(locate: Callable[[str], str] = name_of) -> AsyncIterator[ShmReader]:
    made = ShmReader(locate)
    async with started([made]):
        assert not made.unavailable, made.unavailable
        yield made


async def reach(here: ShmReader, instance_id: str) -> None:
    """Until there is a link: on a busy machine the second that it has may pass first. Workers would
    take another transport then."""
    async with asyncio.timeout(60):
        while (await here.offer(instance_id)).unavailable:
            await asyncio.sleep(0.05)


def descriptors() -> list[str]:
    """What this process has open, but for the listing itself."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return sorted(link for link in links if not link.startswith("/proc/"))


def memories() -> int:
    """How many descriptors of shared KV memory this process has."""
    return sum(1 for link in descriptors() if link.startswith("/memfd:baton-kv"))


@asynccontextmanager
async def between(
    instance_id: str, *, down: Tamper[Data] = passing, up: Tamper[Data] = passing
) -> AsyncIterator[Callable[[str], str]]:
    """Stands between a reader and the outlet of ``instance_id``; yields the reader's ``locate``."""
    name = name_of(f"between-{instance_id}")
    async with ShmLine(name, name_of(instance_id), down=down, up=up).open():
        yield lambda _: name


async def _serve(instance_id: str, tokens: int) -> None:
    async with outlet(instance_id, 2**20) as made:
        hand_off = HandOff(tokens)
        offer = made.open(hand_off.source)
        hand_off.compute(offer, tokens // 2 // BLOCK * BLOCK)
        print(offer.token.hex(), flush=True)
        await asyncio.Event().wait()


async def _read(instance_id: str, token: str, tokens: int) -> None:
    async with reader() as made:
        hand_off = HandOff(tokens)
        await reach(made, instance_id)
        await made.read(terms(instance_id, bytes.fromhex(token)), hand_off.sink)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
    else:
        asyncio.run(_read(sys.argv[1], sys.argv[2], int(sys.argv[3])))
