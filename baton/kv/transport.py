"""The small interface behind which KV moves: an offer on the prefill side, a reader on the other.

    prefill worker                               decode worker
    --------------                               -------------
    Outlet.open(source) -> Offer                 Reader.capability: what it can read
    Offer.choice: travels in PrefillAccepted ->  Reader.read(choice, address, sink)
    Offer.ready(layer, end): may be read now     Sink.write(...): verified, into the pool
    Offer.close(): the Prefill call has ended    its cancellation stops the reading

Data always moves by the decode side reading. Who owns what while it moves:

    the blocks read      the sequence behind the Prefill call, and, while bytes are being taken,
                         a hold: they are quarantined, not reused, if the call ends meanwhile
    the blocks written   the decode worker's sequence, and a hold of whoever drives the reading
    bytes in between     the transport: at most a few pieces, whatever the prompt's length
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from baton.errors import HandoffFailed, IncompatiblePeer
from baton.kv.framing import Assembly, Piece, Shape
from baton.tasks import finish
from baton.v1 import kv_pb2


class Store(Protocol):
    """The KV pool as bytes; see ``BlockStore`` in model/engine/runner.py."""

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]: ...

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """The KV of one Prefill call: which blocks, and how to keep them while bytes are taken."""

    shape: Shape
    store: Store
    block_table: Sequence[int]
    #: Entered around every reading; raises BatonError when the blocks are gone already.
    hold: Callable[[], AbstractContextManager[object]]

    async def read(self, piece: Piece) -> Sequence[memoryview]:
        """The piece's blocks. The caller is inside ``hold``."""
        blocks = [self.block_table[index] for index in self.shape.blocks(piece)]
        return await finish(self.store.read(piece.layer, blocks))


class Sink:
    """The decode worker's blocks for one hand-off; takes only what fits and is next.

    The caller holds the blocks until nothing calls ``write`` any more.
    """

    def __init__(self, shape: Shape, store: Store, block_table: Sequence[int]) -> None:
        self.shape = shape
        self._assembly = Assembly(shape)
        self._store = store
        self._block_table = block_table
        self.bytes = 0  #: of payload written

    async def write(self, piece: Piece, payload: memoryview) -> None:
        """Verify and write one piece. Raises HandoffFailed.

        When cancelled it ends the copy under way first, then is cancelled.
        """
        indices = self._assembly.take(piece, payload.nbytes)
        blocks = [self._block_table[index] for index in indices]
        await finish(self._store.write(piece.layer, blocks, payload))
        self.bytes += payload.nbytes

    def require_complete(self) -> None:
        """Raise HandoffFailed unless every layer was written to its end."""
        self._assembly.require_complete()


class Offer(Protocol):
    """One Prefill call's KV, open to be read. Owned, and closed, by the call."""

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
    """The prefill side of one transport."""

    name: str
    version: int

    def open(self, source: Source) -> Offer: ...


class Reader(Protocol):
    """The decode side of one transport."""

    name: str
    version: int

    @property
    def capability(self) -> kv_pb2.TransportOffer:
        """What travels in PrefillStart."""
        ...

    async def read(self, terms: Terms, sink: Sink) -> None:
        """Read everything into ``sink`` and verify that it is complete.

        Raises HandoffFailed (what came is wrong) or PrefillLost (nothing comes any more).
        """
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """Where and how one hand-off is read: what PrefillAccepted said, and of whom."""

    address: str  #: host:port of the Prefill call
    instance_id: str  #: who answered it
    token: bytes
    choice: kv_pb2.TransportChoice


def negotiate(
    offered: Sequence[kv_pb2.TransportOffer], outlets: Sequence[Outlet]
) -> tuple[Outlet, list[str]]:
    """The reader's most preferred transport that this side has, and why better ones were not.

    Raises IncompatiblePeer, naming both lists, when there is none.
    """
    mine = {outlet.name: outlet for outlet in outlets}
    passed_over: list[str] = []
    for offer in offered:
        outlet = mine.get(offer.name)
        if outlet is None:
            passed_over.append(f"{offer.name}: the prefill worker does not have it")
        elif outlet.version != offer.version:
            passed_over.append(
                f"{offer.name}: version {offer.version} there, {outlet.version} here"
            )
        else:
            return outlet, passed_over
    there = ", ".join(f"{offer.name} {offer.version}" for offer in offered) or "none"
    here = ", ".join(f"{outlet.name} {outlet.version}" for outlet in outlets) or "none"
    raise IncompatiblePeer(f"no KV transport in common: {there} there, {here} here")


def choose(name: str, readers: Sequence[Reader]) -> Reader:
    """The reader for the transport that the prefill side chose."""
    for reader in readers:
        if reader.name == name:
            return reader
    raise HandoffFailed(f"transport {name!r} was chosen, but was never offered")
