"""The pieces under the shm transport: sealed memory, checked messages, the socket."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import HandoffFailed, PeerError
from baton.identity import new_instance_id
from baton.kv.checksums import SUM_BYTES
from baton.kv.shm import messages
from baton.kv.shm.errors import Unusable
from baton.kv.shm.messages import Message, decode, encode
from baton.kv.shm.segment import MAX_SLOTS, Geometry, ReadOnlySegment, Segment, unavailable
from baton.kv.shm.wire import Wire, connect, listen, name_of
from tests.shm import descriptors, memories

GEOMETRY = Geometry(slots=4, slot_bytes=1000, slot_blocks=2)


# -- memory ----------------------------------------------------------------------------------


@given(st.integers(1, 2**26), st.integers(1, 2**23), st.integers(1, 2**20))
def test_slots_hold_whole_blocks_within_the_bound(total: int, piece: int, block: int) -> None:
    try:
        geometry = Geometry.fit(total, piece, block)
    except Unusable:
        assert total < mmap.PAGESIZE + 2 * (block + SUM_BYTES)
        return
    assert geometry.total_bytes <= total
    assert 2 <= geometry.slots <= MAX_SLOTS
    assert geometry.slot_bytes % block == 0 and geometry.slot_bytes <= max(piece, block)


def test_what_is_filled_can_be_read_and_nothing_stays_open() -> None:
    before = descriptors()
    mine = Segment(GEOMETRY)
    mine.reserve()
    theirs = ReadOnlySegment(os.dup(mine.descriptor), GEOMETRY)
    theirs.map()
    mine.close_descriptor()
    assert theirs.nonce == mine.nonce
    data = os.urandom(1000)
    with mine.slot(3) as target:
        target[:] = data
    with theirs.slot(3, 303) as payload:
        assert payload == data[:303] and payload.readonly
    for slot, nbytes in ((4, 1), (-1, 1), (0, 0), (0, 1001)):
        with pytest.raises(ValueError), theirs.slot(slot, nbytes):
            pass
    with pytest.raises(ValueError), mine.slot(4):
        pass
    assert memories() == 2
    mine.close()
    with pytest.raises(ValueError, match="closed"), mine.slot(0):
        pass
    with theirs.slot(3, 1000) as payload:
        assert payload == data, "the reader's mapping keeps the memory"
        theirs.close()
        assert payload == data, "so does what is lent"
    assert descriptors() == before


def test_every_page_is_there_before_the_first_use() -> None:
    segment = Segment(Geometry(4, 2**20, 16))
    segment.reserve()
    assert os.fstat(segment.descriptor).st_blocks * 512 >= segment.geometry.total_bytes
    segment.close()


def test_the_decode_side_can_neither_write_nor_shrink() -> None:
    segment = Segment(GEOMETRY)
    segment.reserve()
    theirs, size = segment.descriptor, GEOMETRY.total_bytes
    with pytest.raises(PermissionError):
        mmap.mmap(theirs, size)
    with pytest.raises(PermissionError):
        os.write(theirs, b"x")
    for other in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(theirs, other)
    with pytest.raises(PermissionError):
        fcntl.fcntl(theirs, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    segment.close()


def test_memory_that_is_not_sealed_or_of_another_size_is_refused() -> None:
    before = descriptors()
    size = GEOMETRY.total_bytes
    bare = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(bare, size)
    with pytest.raises(Unusable, match="seals"):
        ReadOnlySegment(bare, GEOMETRY).map()
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        with pytest.raises(Unusable):
            ReadOnlySegment(os.dup(file.fileno()), GEOMETRY).map()
    segment = Segment(GEOMETRY)
    segment.reserve()
    with pytest.raises(Unusable, match="bytes"):
        ReadOnlySegment(os.dup(segment.descriptor), Geometry(5, 1000, 2)).map()
    segment.close()
    assert descriptors() == before


def test_memory_that_was_never_mapped_leaves_nothing_open() -> None:
    before = descriptors()
    segment = Segment(GEOMETRY)
    segment.reserve()
    theirs = ReadOnlySegment(os.dup(segment.descriptor), GEOMETRY)
    theirs.close()
    segment.close()
    assert descriptors() == before


def test_memory_is_unpinned_before_it_is_unmapped() -> None:
    held: list[memoryview] = []

    @contextmanager
    def pin(memory: memoryview) -> Iterator[None]:
        held.append(memory)  # as a device that lets go later than it is told to
        yield
        with pytest.raises(ValueError, match="closed"), mine.slot(0):
            pass
        held.append(memory)

    before = descriptors()
    mine = Segment(GEOMETRY, pin)
    mine.reserve()
    with mine.slot(0) as slot:
        slot[:] = bytes(range(250)) * 4
    mine.close()
    whole, again = held
    assert whole is again and whole.nbytes == GEOMETRY.total_bytes
    assert whole[GEOMETRY.offset(0)] == 0 and whole[GEOMETRY.offset(0) + 249] == 249
    assert descriptors() != before, "the mapping stays for as long as the device has it"
    del whole, again
    held.clear()
    assert descriptors() == before


def test_no_room_is_said_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    before = descriptors()
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "no space left" in unavailable()
    assert descriptors() == before


def test_a_system_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() == ""
    monkeypatch.delattr(os, "memfd_create")
    assert "memfd_create" in unavailable()


# -- messages --------------------------------------------------------------------------------

EVERY: list[Message] = [
    messages.Hello(2, 8, 2**21, 32),
    messages.Proof(bytes(range(16))),
    messages.Proven(),
    messages.Read(3, bytes(range(16))),
    messages.Filled(1, 2, 3, 4, 5, 6, 7),
    messages.Consumed(7),
    messages.Cancel(8),
    messages.Ended(9, ""),
    messages.Ended(9, "gone"),
    messages.Broken("so"),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_messages_come_back_and_damage_is_noticed(message: Message) -> None:
    data = encode(5, message)
    assert len(data) <= messages.MAX_BYTES
    assert decode(5, data) == message
    for at in range(len(data)):
        with pytest.raises(HandoffFailed):
            decode(5, data[:at])
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(HandoffFailed):
            decode(5, bytes(damaged))
    with pytest.raises(HandoffFailed, match="lost"):
        decode(4, data)
    with pytest.raises(HandoffFailed, match="repeated"):
        decode(6, data)


def test_a_long_reason_loses_its_end() -> None:
    reason = decode(0, encode(0, messages.Broken("é" * 500)))
    assert isinstance(reason, messages.Broken) and reason.reason.startswith("é" * 100)


# -- socket ----------------------------------------------------------------------------------


class Heard:
    """What a wire tells."""

    def __init__(self, wire: Wire) -> None:
        self.messages: list[Message] = []
        self.lost: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()
        wire.listen(self.messages.append, self.lost.set_result)


def wires() -> tuple[Wire, Wire]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Wire(one), Wire(other)


async def test_messages_in_order_then_the_end() -> None:
    one, other = wires()
    one.send(messages.Proven())
    assert await other.receive() == (messages.Proven(), [])
    heard = Heard(other)
    for slot in range(50):
        one.send(messages.Consumed(slot))
    one.close()
    assert "closed" in str(await heard.lost)
    assert heard.messages == [messages.Consumed(slot) for slot in range(50)]
    assert other.closed
    other.send(messages.Proven())  # goes nowhere


async def test_damage_ends_both_sides_with_the_reason() -> None:
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire = Wire(other)
    heard = Heard(wire)
    raw.send(b"nonsense")
    assert isinstance(await heard.lost, HandoffFailed)
    said = decode(0, raw.recv(messages.MAX_BYTES))
    assert isinstance(said, messages.Broken) and "damaged" in said.reason
    raw.close()


async def test_a_peer_that_does_not_read_is_lost() -> None:
    one, other = wires()
    heard = Heard(one)
    for _ in range(10_000):
        one.send(messages.Proven())
    assert isinstance(await heard.lost, HandoffFailed)
    other.close()


async def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = wires()
    one.require_same_user()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Unusable, match="12345"):
        one.require_same_user()
    one.close()
    other.close()


async def test_nobody_listens_or_somebody_does_already() -> None:
    before = descriptors()
    with pytest.raises(Unusable, match="no process"):
        connect(name_of("nobody"))
    taken = name_of(new_instance_id())
    listener = listen(taken)
    with pytest.raises(Unusable, match="in use"):
        listen(taken)
    listener.close()
    assert descriptors() == before
