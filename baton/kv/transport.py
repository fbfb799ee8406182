"""The small interface behind which KV moves: an offer on the prefill side, a reader on the other.

    prefill worker                               decode worker
    --------------                               -------------
                                             <-  Reader.offer(instance): travels in PrefillStart
    negotiate(offers, outlets) -> Agreement
    Outlet.open(source) -> Offer
    Offer.choice: travels in PrefillAccepted ->  Reader.read(terms, sink)
    Offer.ready(layer, end): may be read now     Sink.write(...): verified, into the pool
    Offer.close(): the Prefill call has ended    its cancellation stops the reading

Data always moves by the decode side reading. Who owns what while it moves:

    the blocks read      the sequence behind the Prefill call, and, while bytes are being taken,
                         a hold: they are quarantined, not reused, if the call ends meanwhile
    the blocks written   the decode worker's sequence, and a hold of whoever drives the reading
    bytes in between     the transport: at most a few pieces, whatever the prompt's length
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from baton.errors import HandoffFailed, IncompatiblePeer
from baton.kv.checksums import of_blocks, of_payload, verify
from baton.kv.framing import Assembly, Piece, Shape
from baton.kv.progress import Progress
from baton.kv.trace import Event, Trace
from baton.tasks import finish
from baton.v1 import kv_pb2, worker_pb2


def _uncounted(_: Piece) -> None:
    """For a source whose reader nobody waits for, and a sink that nobody looks at."""


def _nobody() -> None:
    """Whom a sink tells that it is urgent, until a reader wants to hear it."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where a pool lies: block b of layer l at ``address + (l * num_blocks + b) * block_bytes``."""

    address: int
    layers: int
    num_blocks: int
    block_bytes: int
    device: int | None = None  #: of CUDA; None: host memory


class Store(Protocol):
    """The KV pool as bytes; see ``BlockStore`` in model/engine/runner.py."""

    @property
    def region(self) -> Region: ...

    def once_written(self, layer: int, tell: Callable[[], None]) -> None: ...

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]: ...

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None: ...

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None: ...

    def pin(self, memory: memoryview) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """The KV of one Prefill call: which blocks, and how to keep them while bytes are taken."""

    shape: Shape
    store: Store
    block_table: Sequence[int]
    #: Entered around every reading; raises BatonError when the blocks are gone already.
    hold: Callable[[], AbstractContextManager[object]]
    checksums: bool = False  #: as agreed: every block travels with its CRC-32C
    #: Called with every piece that is out of the pool: by ``read`` and ``read_into``, and by a
    #: transport that takes bytes in another way. Says how far the reader is.
    taken: Callable[[Piece], None] = _uncounted

    async def read(self, piece: Piece) -> Sequence[memoryview]:
        """The piece's blocks. The caller is inside ``hold``."""
        views = await finish(self.store.read(piece.layer, self._blocks(piece)))
        self.taken(piece)
        return views

    async def read_into(self, piece: Piece, target: memoryview) -> int:
        """Copy the piece's blocks to the start of ``target``; returns how many bytes they are.

        The caller is inside ``hold``. When cancelled it ends the copying first, then is
        cancelled. Raises ValueError when they do not fit.
        """
        blocks = self._blocks(piece)
        nbytes = len(blocks) * self.shape.block_bytes
        await finish(self.store.read_into(piece.layer, blocks, target[:nbytes]))
        self.taken(piece)
        return nbytes

    def sums_of_blocks(self, blocks: Iterable[memoryview]) -> list[int]:
        """The checksums that travel with these blocks: none where none were agreed on."""
        return of_blocks(blocks) if self.checksums else []

    def sums_of_payload(self, payload: memoryview) -> list[int]:
        """As ``sums_of_blocks``, for blocks that lie one after another."""
        return of_payload(payload, self.shape.block_bytes) if self.checksums else []

    def _blocks(self, piece: Piece) -> list[int]:
        return [self.block_table[index] for index in self.shape.blocks(piece)]


class Sink:
    """The decode worker's blocks for one hand-off; takes only what fits and is next.

    A transport hands over what came (``write``), or puts it into the pool by itself (``claim``,
    then ``written``). The caller holds the blocks until neither goes on any more.
    """

    def __init__(
        self,
        shape: Shape,
        store: Store,
        block_table: Sequence[int],
        trace: Trace | None = None,
    ) -> None:
        self.shape = shape
        self.urgent = True  #: somebody waits for the last byte; else KV may come in batches
        self.on_urgent: Callable[[], None] = _nobody  #: set by the reader
        #: As agreed: every block must come with its CRC-32C. Decided before the first one comes.
        self.checksums = False
        self.computed = Progress(shape)  #: as the Prefill call tells
        self._trace = trace
        self._assembly = Assembly(shape)
        self._store = store
        self._block_table = block_table
        self.bytes = 0  #: of payload written
        #: Called with every piece that is in its place.
        self.on_written: Callable[[Piece], None] = _uncounted

    async def write(self, piece: Piece, payload: memoryview, sums: Sequence[int] = ()) -> None:
        """Verify and write one piece, ``sums`` being the checksums that came with it, in order.

        Raises HandoffFailed. When cancelled it ends the copy under way first, then is cancelled.
        """
        blocks = self.claim(piece, payload.nbytes)
        if self.checksums:
            found = of_payload(payload, self.shape.block_bytes)
            verify(piece, self.shape.block_size, sums, found)
        elif sums:
            raise HandoffFailed(f"KV came with {len(sums)} checksums, but none were agreed on")
        self._mark("received", piece)
        await finish(self._store.write(piece.layer, blocks, payload))
        self.written(piece, payload.nbytes)

    def claim(self, piece: Piece, nbytes: int) -> list[int]:
        """Verify a piece; returns the ids of the blocks that it is to be put into.

        Raises HandoffFailed.
        """
        return [self._block_table[index] for index in self._assembly.take(piece, nbytes)]

    def written(self, piece: Piece, nbytes: int) -> None:
        """A piece that was claimed is in its place."""
        self._mark("written", piece)
        self.bytes += nbytes
        self.on_written(piece)

    def ready(self, layer: int, end: int) -> None:
        """The prefill side says that KV of ``layer`` below position ``end`` may be read.

        Raises HandoffFailed when there is no such layer or position.
        """
        if not 0 <= layer < self.shape.layers or end > self.shape.end:
            raise HandoffFailed(
                f"KV of layer {layer} is said to be ready to token {end}, "
                f"but there are {self.shape.layers} layers and {self.shape.end} tokens"
            )
        self.computed.advance(layer, end)

    def _mark(self, what: Event, piece: Piece) -> None:
        if self._trace is not None:
            self._trace.add(what, piece.layer, piece.end)

    def hurry(self) -> None:
        """What was not urgent is from here on."""
        self.urgent = True
        self.on_urgent()

    def require_complete(self) -> None:
        """Raise HandoffFailed unless every layer was written to its end."""
        self._assembly.require_complete()
        if self.bytes != self.shape.total_bytes:
            raise HandoffFailed(
                f"only {self.bytes} of {self.shape.total_bytes} bytes of KV were written"
            )


class Offer(Protocol):
    """One Prefill call's KV, open to be read. Owned, and closed, by the call."""

    told: bool  #: its reader knows what it may read from the call's LayerReady alone

    @property
    def choice(self) -> kv_pb2.TransportChoice:
        """What the reader needs, without the downgrades."""
        ...

    @property
    def token(self) -> bytes:
        """Proves that a reader is the caller; useless once the offer is closed."""
        ...

    def ready(self, layer: int, end: int) -> None:
        """KV of ``layer`` below position ``end`` may be read. Never waits."""
        ...

    def close(self) -> None:
        """Stop the readings under way; each gives up its hold once no byte of it moves."""
        ...


class Outlet(Protocol):
    """The prefill side of one transport. See ``started``."""

    name: str
    version: int

    @property
    def unavailable(self) -> str:
        """Why it cannot be used in this process; empty when it can."""
        ...

    async def start(self) -> None:
        """Before the first offer. Where it cannot be used, ``unavailable`` says why."""
        ...

    async def close(self) -> None:
        """After the last offer was closed. Also one that was never started."""
        ...

    def open(self, source: Source) -> Offer: ...


class Reader(Protocol):
    """The decode side of one transport. See ``started``."""

    name: str
    version: int
    unavailable: str  #: why it cannot be used in this process; empty when it can
    checksums: bool  #: blocks can come with them

    async def start(self) -> None:
        """Before the first offer. Where it cannot be used, ``unavailable`` says why."""
        ...

    async def close(self) -> None:
        """When nothing reads any more. Also one that was never started."""
        ...

    async def offer(self, instance_id: str) -> kv_pb2.TransportOffer:
        """What travels in PrefillStart to that instance: how it can be read from, or why not."""
        ...

    async def read(self, terms: Terms, sink: Sink) -> None:
        """Read everything into ``sink`` and verify that it is complete.

        Raises HandoffFailed (what came is wrong) or PrefillLost (nothing comes any more).
        """
        ...


@asynccontextmanager
async def started(transports: Sequence[Outlet | Reader]) -> AsyncIterator[None]:
    """One side's transports, for the body; then they are closed, the last first."""
    async with AsyncExitStack() as closing:
        for transport in transports:
            closing.push_async_callback(transport.close)
            await transport.start()
        yield


def capabilities(
    transports: Sequence[Outlet | Reader],
) -> list[worker_pb2.TransportCapability]:
    """What a worker says of its transports."""
    return [
        worker_pb2.TransportCapability(name=t.name, version=t.version, unavailable=t.unavailable)
        for t in transports
    ]


@dataclass(frozen=True, slots=True)
class Terms:
    """Where and how one hand-off is read: what PrefillAccepted said, and of whom."""

    address: str  #: host:port of the Prefill call
    instance_id: str  #: who answered it
    token: bytes
    choice: kv_pb2.TransportChoice


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the prefill side settles on."""

    outlet: Outlet
    checksums: bool  #: as the reader wants
    downgrades: Sequence[str]  #: why a better transport was passed over, one line each


def negotiate(offered: Sequence[kv_pb2.TransportOffer], outlets: Sequence[Outlet]) -> Agreement:
    """The reader's most preferred transport that this side has, and why better ones were not.

    Raises IncompatiblePeer, naming both lists, when there is none. What is said of the two sides
    names them, as it is the decode worker that will log it.
    """
    mine = {outlet.name: outlet for outlet in outlets}
    passed_over: list[str] = []
    for offer in offered:
        outlet = mine.get(offer.name)
        if outlet is not None and not (obstacle := _obstacle(offer, outlet)):
            return Agreement(outlet, offer.checksums, passed_over)
        passed_over.append(f"{offer.name}: {obstacle if outlet else _MISSING}")
    reads = ", ".join(f"{offer.name} {offer.version}" for offer in offered) or "none"
    has = ", ".join(f"{outlet.name} {outlet.version}" for outlet in outlets) or "none"
    why = "".join(f"; {line}" for line in passed_over)
    raise IncompatiblePeer(
        f"no KV transport in common: the decode worker reads {reads}, the prefill worker has "
        f"{has}{why}"
    )


_MISSING = "the prefill worker does not have it"


def _obstacle(offer: kv_pb2.TransportOffer, outlet: Outlet) -> str:
    """Why the pair cannot use a transport that both know; empty when it can."""
    if outlet.version != offer.version:
        return (
            f"version {offer.version} of the decode worker, {outlet.version} of the prefill worker"
        )
    return outlet.unavailable or offer.unavailable


def choose(name: str, readers: Sequence[Reader]) -> Reader:
    """The reader for the transport that the prefill side chose."""
    for reader in readers:
        if reader.name == name:
            return reader
    raise HandoffFailed(f"transport {name!r} was chosen, but was never offered")
