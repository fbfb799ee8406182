"""What goes wrong with blocks on their way, and pools in which late bytes show."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from baton.identity import Role
from baton.kv.framing import Piece
from baton.kv.transport import Sink
from model.engine.mock_runner import MockRunner, MockStore
from tests.lines import Tamper
from tests.workers import BLOCK, CONTEXT, VOCAB, Worker, generation

T = TypeVar("T")

#: What may become of one message, or of one block between transport and pool.
DROP, DUPLICATE, REORDER, TRUNCATE, CORRUPT = "drop", "duplicate", "reorder", "truncate", "corrupt"

_PATTERN = 0xA5


class Tampering(Generic[T]):
    """Message number ``at`` of one stream is dropped, ...; all others pass. A ``Tamper``."""

    def __init__(
        self, kind: str, at: int, rng: random.Random, change: Callable[[T, Callable[..., bytes]], T]
    ) -> None:
        """``change`` applies a function of bytes to a message's bytes."""
        self.struck = False
        self._kind, self._at, self._rng, self._change = kind, at, rng, change
        self._held: list[T] = []

    def __call__(self, number: int, data: T) -> list[T]:
        held, self._held = self._held if number else [], []
        if number != self._at or self.struck:
            return [data, *held]
        self.struck = True
        match self._kind:
            case "drop":
                return []
            case "duplicate":
                return [data, data]
            case "reorder":
                self._held = [data]
                return []
            case "truncate":
                return [self._change(data, self._truncated)]
            case "corrupt":
                return [self._change(data, self._corrupted)]
        raise ValueError(self._kind)

    def _truncated(self, data: bytes) -> bytes:
        return data[: self._rng.randrange(len(data))]

    def _corrupted(self, data: bytes) -> bytes:
        changed = bytearray(data)
        changed[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)


Block = tuple[Piece, bytes]


class FaultySink(Sink):
    """A sink whose blocks are tampered with before they are verified."""

    def __init__(self, *arguments: Any, tamper: Tamper[Block], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tamper = tamper
        self._numbers = itertools.count()

    async def write(self, piece: Piece, payload: memoryview, *rest: Any) -> None:
        for block, data in self._tamper(next(self._numbers), (piece, bytes(payload))):
            await super().write(block, memoryview(data), *rest)


class LateStore:
    """A pool whose copies take a while, as a device's do, and which knows what is on the move."""

    def __init__(self, store: MockStore, rng: random.Random) -> None:
        self.pool, self.block_bytes = store.pool, store.block_bytes
        self.moving: Counter[int] = Counter()  #: copies under way, by block
        self.written = 0  #: pieces
        self._store, self._rng = store, rng
        self.region, self.once_written, self.pin = store.region, store.once_written, store.pin

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        await self._move(blocks, self._store.read(layer, blocks[:0]))
        return await self._store.read(layer, blocks)

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        await self._move(blocks, self._store.read_into(layer, blocks, target))

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        """In two halves, the second one late."""
        half = len(blocks) // 2
        border = half * self.block_bytes
        await self._move(
            blocks,
            self._store.write(layer, blocks[:half], data[:border]),
            self._store.write(layer, blocks[half:], data[border:]),
        )
        self.written += 1

    async def _move(self, blocks: Sequence[int], *copies: Coroutine[Any, Any, object]) -> None:
        """Each copy after a while, whoever is cancelled: as of a thread."""

        async def move() -> None:
            self.moving.update(blocks)
            for copy in copies:
                await asyncio.sleep(self._rng.choice([0.0, 0.0, 0.002, 0.01]))
                await copy
            self.moving.subtract(blocks)

        await asyncio.shield(asyncio.create_task(move()))


class LateRunner(MockRunner):
    """A mock runner with a ``LateStore``."""

    def __init__(self, *arguments: Any, rng: random.Random, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late = LateStore(self._store, rng)

    @property
    def store(self) -> Any:
        return self._late


async def canary(worker: Worker, barrier: asyncio.Barrier, role: Role) -> None:
    """Reuse every block as soon as that may be, and see that nothing lands in it any more.

    Begins when no sequence lives there, passes ``barrier`` with the first blocks, and ends when
    all is quiet. The worker has a ``LateStore``. ``role`` is what it does; meanwhile it may decode.
    """
    engine, store, mine = worker.runtime.engine, worker.runtime.store, list[int]()
    assert isinstance(store, LateStore)

    def take(stack: ExitStack, free: int) -> None:
        """So many blocks, by a sequence that waits for KV which nobody sends."""
        ids = [random.randrange(VOCAB) for _ in range(min(free * BLOCK, CONTEXT - BLOCK))]
        asked = generation(ids, request_id="canary", max_tokens=1)
        sequence = stack.enter_context(worker.runtime.sequence(asked, None, receive=True))
        table = list(sequence.reservation.block_table)
        assert not [b for b in table if store.moving[b]], "reused while a copy is under way"
        store.pool[:, table] = _PATTERN
        mine.extend(table)

    async with asyncio.timeout(60.0):
        while (load := engine.load()).running or load.waiting:
            await asyncio.sleep(0)
        passing = asyncio.ensure_future(barrier.wait())
        with ExitStack() as stack:
            engine.take_roles({role, Role.DECODE})
            stack.callback(engine.take_roles, {role})
            while not passing.done() or store.moving.total() or load.blocks.quarantined:
                if free := load.blocks.free + load.blocks.cached:
                    take(stack, free)
                await asyncio.sleep(0.0005)
                load = engine.load()
            assert (store.pool[:, mine] == _PATTERN).all(), "bytes landed in reused blocks"
