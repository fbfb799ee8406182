"""The prefill side of ``nixl``: the pool, registered, and a seal on each open offer."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

import structlog

from baton.errors import PeerError
from baton.kv.framing import Piece
from baton.kv.nixl import NAME, VERSION, Unusable
from baton.kv.nixl.agent import Agent
from baton.kv.nixl.api import load
from baton.kv.nixl.seals import SEAL_BYTES
from baton.kv.transport import Region, Source
from baton.v1 import kv_pb2

log = structlog.get_logger(__name__)


class NixlOffer:
    """One hand-off, open until ``close``. Implements ``Offer``."""

    told = True

    def __init__(self, source: Source, agent: Agent, pool: Region) -> None:
        """Raises what the source's ``hold`` raises, and WorkerFull when all seals are taken."""
        self.token = secrets.token_bytes(SEAL_BYTES)
        self._source = source
        self._closing = ExitStack()
        with ExitStack() as undo:
            undo.enter_context(source.hold())
            seal = agent.seals.take()
            undo.callback(agent.seals.give_back, seal)  # before the hold: the seal breaks first
            agent.seals.write(seal, self.token)
            agent.attend()
            undo.callback(agent.ignore)
            self._closing = undo.pop_all()
        shape = source.shape
        metadata = kv_pb2.NixlSource(
            agent=agent.metadata,
            address=pool.address,
            layers=pool.layers,
            num_blocks=pool.num_blocks,
            block_bytes=pool.block_bytes,
            device=pool.device,
            seal_address=seal,
            blocks=source.block_table[shape.start // shape.block_size :],
        )
        self.choice = kv_pb2.TransportChoice(name=NAME, metadata=metadata.SerializeToString())

    def ready(self, layer: int, end: int) -> None:
        """Counts as taken: the reader hears of it from the Prefill call and fetches it unseen."""
        self._source.taken(Piece(layer, self._source.shape.start, end))

    def close(self) -> None:
        """Break the seal, then give up the hold: nothing READ from here on is used."""
        self._closing.close()


class NixlOutlet:
    """An ``Outlet``."""

    name, version = NAME, VERSION

    def __init__(self, instance_id: str, pool: Region, withheld: str = "") -> None:
        """``withheld``: why it is not to be used, whatever is installed; empty when it may be."""
        self._pool = pool
        self._withheld = withheld
        self._agent = Agent(load, instance_id, pool)

    @property
    def unavailable(self) -> str:
        return self._withheld or self._agent.ended

    async def start(self) -> None:
        """Register the pool; where that cannot be, ``unavailable`` says why."""
        if self._withheld:
            log.warning("nixl transport unavailable", reason=self._withheld)
            return
        try:
            await self._agent.start()
        except Unusable as error:
            log.warning("nixl transport unavailable", reason=str(error))

    async def close(self) -> None:
        """Returns when nothing is registered any more."""
        await self._agent.close()

    def open(self, source: Source) -> NixlOffer:
        """Raises PeerError when the agent has ended, and as ``NixlOffer`` does."""
        if self.unavailable:
            raise PeerError(f"the NIXL agent has ended: {self.unavailable}")
        return NixlOffer(source, self._agent, self._pool)
