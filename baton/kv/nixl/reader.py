"""The decode side of ``nixl``: READs what the Prefill call says is computed, then the seal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError

from baton.errors import HandoffFailed, PeerError, PrefillLost
from baton.identity import new_instance_id
from baton.kv.framing import Cutter, Piece, Shape
from baton.kv.nixl import NAME, VERSION, Unusable
from baton.kv.nixl.agent import Agent
from baton.kv.nixl.api import load
from baton.kv.struck import Struck
from baton.kv.transport import Region, Sink, Terms
from baton.tasks import group
from baton.v1 import kv_pb2

log = structlog.get_logger(__name__)

#: About so many bytes per READ, which may block the agent's thread for as long as they take.
PIECE_BYTES = 4 * 2**20
#: READs of one hand-off under way at once: the thread always has the next one at hand.
WINDOW = 4


@dataclass(slots=True, eq=False)
class _Peer:
    """A prefill instance to which the agent is connected, or being connected."""

    agent: Agent
    instance_id: str
    address: str
    connecting: asyncio.Task[None]
    users: int = 0
    dropped: bool = False  #: forget it with the last user


class NixlReader:
    """Implements ``Reader``."""

    name, version, checksums = NAME, VERSION, False

    def __init__(self, pool: Region, *, unchecked: bool = True, withheld: str = "") -> None:
        """``unchecked``: KV may come without checksums, as it does. ``withheld``: why it is not to
        be used, whatever is installed; empty when it may be."""
        self.unavailable = "not started"
        self._pool = pool
        self._unchecked = unchecked
        self._withheld = withheld
        self._agent = Agent(load, new_instance_id(), pool)
        self._renewing: asyncio.Task[None] | None = None
        self._peers: dict[str, _Peer] = {}
        self._struck = Struck()  # instances that it did not work with, and why

    async def start(self) -> None:
        """Register the pool; where that cannot be, ``unavailable`` says why."""
        try:
            if self._withheld:
                raise Unusable(self._withheld)
            if not self._unchecked:
                raise Unusable("it carries no checksums, and --kv-checksums is on")
            await self._agent.start()
            self.unavailable = ""
        except Unusable as error:
            self.unavailable = str(error)
            log.warning("nixl transport unavailable", reason=self.unavailable)

    async def close(self) -> None:
        """Returns when nothing is registered and nobody connected any more."""
        if self._renewing is not None:
            await self._renewing
        await self._agent.close()

    async def offer(self, instance_id: str) -> kv_pb2.TransportOffer:
        reason = self.unavailable or self._struck.why(instance_id)
        if not reason and (reason := self._agent.ended):
            self._renew()
        return kv_pb2.TransportOffer(name=NAME, version=VERSION, unavailable=reason)

    async def read(self, terms: Terms, sink: Sink) -> None:
        source = _parse(terms.choice.metadata, sink.shape)
        try:
            async with self._connected(terms, source) as agent:
                await self._read_pieces(agent, terms.instance_id, source, sink)
                seal = await agent.read_seal(terms.instance_id, source.seal_address)
        except HandoffFailed:
            raise
        except PeerError as error:
            if not self._agent.ended:
                self._strike(terms.instance_id, error.message)
            raise PrefillLost(f"reading KV from {terms.address}: {error.message}") from error
        if seal != terms.token:
            raise PrefillLost(
                f"reading KV from {terms.address}: its seal is broken, the Prefill call has ended"
            )
        sink.require_complete()

    async def _read_pieces(
        self, agent: Agent, peer: str, source: kv_pb2.NixlSource, sink: Sink
    ) -> None:
        """READ each piece as soon as it is computed, several at a time."""
        shape, free = sink.shape, asyncio.Semaphore(WINDOW)
        first, there = shape.start // shape.block_size, list(source.blocks)

        async def move(piece: Piece, here: list[int], nbytes: int) -> None:
            blocks = shape.blocks(piece)
            mine = piece.layer * self._pool.num_blocks
            theirs = piece.layer * source.num_blocks
            try:
                await agent.read(
                    peer,
                    [mine + block for block in here],
                    [theirs + block for block in there[blocks.start - first : blocks.stop - first]],
                )
            finally:
                free.release()
            sink.written(piece, nbytes)

        cutter = Cutter(shape, PIECE_BYTES)
        async with group() as tasks, aclosing(sink.computed.pieces(cutter)) as pieces:
            async for piece in pieces:
                await free.acquire()
                nbytes = len(shape.blocks(piece)) * shape.block_bytes
                here = sink.claim(piece, nbytes)
                tasks.create_task(move(piece, here, nbytes), name="kv piece")

    @asynccontextmanager
    async def _connected(self, terms: Terms, source: kv_pb2.NixlSource) -> AsyncIterator[Agent]:
        """The agent, connected to the instance of ``terms``, for the body. Raises PeerError."""
        peer = self._peers.get(terms.instance_id) or self._connect(terms, source)
        peer.users += 1
        try:
            await asyncio.shield(peer.connecting)
            yield peer.agent
        except PeerError:
            self._drop(peer)
            raise
        finally:
            peer.users -= 1
            self._forget(peer)

    def _connect(self, terms: Terms, source: kv_pb2.NixlSource) -> _Peer:
        """Whoever comes first connects for all. Another instance at this address is gone."""
        instance_id, address = terms.instance_id, terms.address
        for other in [peer for peer in self._peers.values() if peer.address == address]:
            self._drop(other)
            self._forget(other)
        connecting = asyncio.create_task(
            self._agent.connect(instance_id, source.agent, _region(source)), name="nixl connect"
        )
        connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        peer = _Peer(self._agent, instance_id, address, connecting)
        self._peers[instance_id] = peer
        return peer

    def _drop(self, peer: _Peer) -> None:
        """Let nobody use this connection any more."""
        peer.dropped = True
        if self._peers.get(peer.instance_id) is peer:
            del self._peers[peer.instance_id]

    def _forget(self, peer: _Peer) -> None:
        # By now there may be another connection to it, by the same name.
        if peer.dropped and not peer.users and peer.instance_id not in self._peers:
            peer.agent.forget(peer.instance_id)

    def _strike(self, instance_id: str, why: str) -> None:
        """Use another transport with this instance from here on."""
        self._struck.add(instance_id, why)
        log.warning("nixl given up", peer=instance_id, reason=why)

    def _renew(self) -> None:
        """The agent has ended: start another."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._start_again(), name="nixl agent")

    async def _start_again(self) -> None:
        if self._agent.blamed:
            self._strike(self._agent.blamed, self._agent.ended)
        self._peers.clear()
        self._agent = Agent(load, new_instance_id(), self._pool)
        await self.start()
        self._renewing = None


def _parse(metadata: bytes, shape: Shape) -> kv_pb2.NixlSource:
    """Raises HandoffFailed unless it is about as much KV as ``shape``."""
    try:
        source = kv_pb2.NixlSource.FromString(metadata)
    except DecodeError as error:
        raise HandoffFailed(f"{len(metadata)} bytes are no NIXL source: {error}") from error
    blocks = -(-shape.end // shape.block_size) - shape.start // shape.block_size
    theirs = (source.layers, source.block_bytes, len(source.blocks))
    if theirs != (shape.layers, shape.block_bytes, blocks):
        raise HandoffFailed(
            "layers, bytes per block and blocks of the KV are "
            f"{theirs} there, {(shape.layers, shape.block_bytes, blocks)} here"
        )
    if source.blocks and max(source.blocks) >= source.num_blocks:
        raise HandoffFailed(f"block {max(source.blocks)} is none of {source.num_blocks} there")
    return source


def _region(source: kv_pb2.NixlSource) -> Region:
    return Region(
        address=source.address,
        layers=source.layers,
        num_blocks=source.num_blocks,
        block_bytes=source.block_bytes,
        device=source.device if source.HasField("device") else None,
    )
