"""What an agent does with READs that hang, break or fail, on a NIXL that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from baton.errors import PeerError, WorkerFull
from baton.kv.nixl.agent import PATIENCE, Agent
from baton.kv.nixl.api import Api
from baton.kv.nixl.seals import MAX_SEALS, SEAL_BYTES, Seals
from baton.kv.transport import Region
from tests.fakes import eventually

POOL = Region(address=4096, layers=2, num_blocks=8, block_bytes=512)


class NixlError(Exception):
    pass


class Lost(NixlError):
    pass


class FakeHandle:
    def __init__(self, agent: FakeNixl) -> None:
        self._agent = agent

    def release(self) -> None:
        self._agent.open -= 1


class FakeNixl:
    """Implements ``NixlAgent``. READs go on until ``state`` says otherwise."""

    def __init__(self) -> None:
        self.state: str | Exception = "PROC"
        self.open = 0  #: handles
        self.registered = 0
        self.remote: list[str] = []
        self.reads: list[tuple[Sequence[int], Sequence[int]]] = []

    def register_memory(self, reg_list: object, mem_type: str) -> object:
        self.registered += 1
        return reg_list

    def deregister_memory(self, dereg_list: object) -> None:
        self.registered -= 1

    def get_agent_metadata(self) -> bytes:
        return b"metadata"

    def add_remote_agent(self, metadata: bytes) -> bytes:
        self.remote.append(metadata.decode())
        return metadata

    def remove_remote_agent(self, agent: str) -> None:
        self.remote.remove(agent)

    def prep_xfer_dlist(self, agent_name: str, xfer_list: object, mem_type: str) -> FakeHandle:
        return self._handle()

    def make_prepped_xfer(
        self, operation: str, local: object, here: Sequence[int], remote: object,
        there: Sequence[int],
    ) -> FakeHandle:  # fmt: skip
        assert operation == "READ"
        self.reads.append((here, there))
        return self._handle()

    def get_xfer_descs(self, descs: object, mem_type: str) -> object:
        return descs

    def initialize_xfer(self, operation: str, here: object, there: object, peer: str) -> FakeHandle:
        return self._handle()

    def transfer(self, handle: FakeHandle) -> str:
        return "PROC"

    def check_xfer_state(self, handle: FakeHandle) -> str:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def get_new_notifs(self) -> dict[str, list[bytes]]:
        return {}

    def _handle(self) -> FakeHandle:
        self.open += 1
        return FakeHandle(self)


@asynccontextmanager
async def agent() -> AsyncIterator[tuple[Agent, FakeNixl]]:
    """Connected to "peer". Ends with nothing open or registered."""
    nixl = FakeNixl()
    made = Agent(lambda: Api(lambda _: nixl, (NixlError,), Lost, lambda *row: row), "me", POOL)
    await made.start()
    assert nixl.registered == 2, "the pool and the seals"
    await made.connect("peer", b"peer", POOL)
    try:
        yield made, nixl
    finally:
        await made.close()
        assert (nixl.open, nixl.registered) == (0, 0)


async def test_a_cancelled_read_ends_when_its_bytes_do() -> None:
    async with agent() as (made, nixl):
        reading = asyncio.create_task(made.read("peer", [1], [2]))
        await eventually(lambda: len(nixl.reads) == 1)
        reading.cancel()
        await asyncio.sleep(PATIENCE / 4)
        assert not reading.done() and nixl.reads == [([1], [2])]
        nixl.state = "DONE"
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not made.ended
        await made.read("peer", [3], [4])


async def test_one_that_does_not_end_takes_the_agent_with_it() -> None:
    async with agent() as (made, nixl):
        other = asyncio.create_task(made.read("peer", [3], [4]))
        reading = asyncio.create_task(made.read("peer", [1], [2]))
        await eventually(lambda: len(nixl.reads) == 2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (nixl.open, nixl.registered) == (0, 0), "before anyone may use the blocks"
        with pytest.raises(PeerError, match="closed"):
            await other
        assert "did not end" in made.ended and made.blamed == "peer"
        with pytest.raises(PeerError, match="did not end"):
            await made.read("peer", [1], [2])


async def test_a_lost_connection_is_no_end_of_the_agent() -> None:
    async with agent() as (made, nixl):
        nixl.state = Lost("REMOTE_DISCONNECT")
        with pytest.raises(PeerError, match="REMOTE_DISCONNECT"):
            await made.read("peer", [1], [2])
        assert not made.ended
        made.forget("peer")
        with pytest.raises(PeerError, match="not connected"):
            await made.read("peer", [1], [2])
        assert nixl.remote == []


@pytest.mark.parametrize("state", ["ERR", NixlError("BACKEND")])
async def test_after_any_other_failure_nothing_of_the_agent_is_trusted(
    state: str | Exception,
) -> None:
    async with agent() as (made, nixl):
        nixl.state = state
        with pytest.raises(PeerError):
            await made.read("peer", [1], [2])
        assert (nixl.open, nixl.registered) == (0, 0)
        await asyncio.sleep(0.05)
        assert made.ended and made.blamed == "peer"


async def test_metadata_of_somebody_else() -> None:
    async with agent() as (made, nixl):
        with pytest.raises(PeerError, match="of NIXL agent another, not of third"):
            await made.connect("third", b"another", POOL)
        assert nixl.remote == ["peer"]


def test_seals_are_blank_when_taken_and_bounded() -> None:
    seals = Seals()
    taken = [seals.take() for _ in range(MAX_SEALS)]
    assert len({*taken}) == MAX_SEALS
    with pytest.raises(WorkerFull, match=str(MAX_SEALS)):
        seals.take()
    for address in (taken[0], taken[-1]):
        seals.write(address, b"x" * SEAL_BYTES)
        assert seals.read(address) == b"x" * SEAL_BYTES
    seals.give_back(taken[0])
    assert seals.read(seals.take()) == bytes(SEAL_BYTES)
    assert seals.read(taken[-1]) == b"x" * SEAL_BYTES
