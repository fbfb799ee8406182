"""The ring: sealed anonymous memory, written by the prefill side, read by the decode side.

The first page holds the nonce, slots of equal size follow, then the checksums of their blocks.
Whoever has a mapping closes it; the memory goes with the last one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeAlias

from baton.kv.checksums import SUM_BYTES
from baton.kv.shm import MEMORY_NAME
from baton.kv.shm.errors import Unusable

NONCE_BYTES = 16
#: So many notifications always find room in the socket.
MAX_SLOTS = 64
#: Demanded by the decode side, which they keep from harm: the memory never gets smaller, and has
#: no writable mapping but the first (Linux 5.1). Numbers, as Python has no name for the last.
_F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 0x02, 0x04, 0x10
_SEALS = _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_FUTURE_WRITE

#: Lets a device copy to and from memory directly while the context is open: see ``Store.pin``.
Pin: TypeAlias = Callable[[memoryview], AbstractContextManager[None]]


def unpinned(_: memoryview) -> AbstractContextManager[None]:
    """For memory that only processors touch."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a segment is divided. Travels in Hello."""

    slots: int
    slot_bytes: int
    slot_blocks: int  #: KV blocks in a slot, at most; so many checksums have their place

    @classmethod
    def fit(cls, total_bytes: int, piece_bytes: int, block_bytes: int) -> Geometry:
        """At least four slots if that can be, of about ``piece_bytes`` and whole blocks each.

        ``total_bytes`` is never exceeded. Raises Unusable when not even two blocks fit.
        """
        budget, taken = total_bytes - mmap.PAGESIZE, block_bytes + SUM_BYTES
        blocks = max(1, min(piece_bytes // block_bytes, budget // 4 // taken))
        slots = min(budget // (blocks * taken), MAX_SLOTS)
        if slots < 2:
            raise Unusable(f"two KV blocks of {block_bytes} bytes do not fit in {total_bytes}")
        return cls(slots, blocks * block_bytes, blocks)

    @property
    def total_bytes(self) -> int:
        return self._first_sum + self.slots * self.slot_blocks * SUM_BYTES

    def offset(self, slot: int) -> int:
        """Where a slot starts. Raises ValueError for one that is not there."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is none of {self.slots}")
        return mmap.PAGESIZE + slot * self.slot_bytes

    def sums(self, slot: int, count: int) -> tuple[int, int]:
        """Where the first ``count`` checksums of a slot lie. Raises ValueError for too many."""
        if not 0 <= count <= self.slot_blocks:
            raise ValueError(f"{count} checksums in a slot of {self.slot_blocks} blocks")
        start = self._first_sum + slot * self.slot_blocks * SUM_BYTES
        return start, start + count * SUM_BYTES

    @property
    def _first_sum(self) -> int:
        return mmap.PAGESIZE + self.slots * self.slot_bytes


class _Memory:
    """A mapping, until it is closed."""

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self._pinned = ExitStack()
        self._mapping: mmap.mmap | None = None

    def hold(self, mapping: mmap.mmap) -> None:
        """Take the mapping over, and pin it. Blocks while that lasts."""
        self._mapping = mapping
        self._pinned.enter_context(self._pin(memoryview(mapping)))

    @contextmanager
    def lend(self, start: int, end: int) -> Iterator[memoryview]:
        """These bytes, for the body, even if the memory is closed meanwhile.

        Raises ValueError when it is closed already.
        """
        if self._mapping is None:
            raise ValueError("the shared memory is closed")
        view = memoryview(self._mapping)[start:end]
        try:
            yield view
        finally:
            # Frames of a traceback may keep the view for long, but not what it views.
            with suppress(BufferError):
                view.release()

    def close(self) -> None:
        """Unmap it: now, or as soon as what is lent comes back and it is not pinned any more."""
        mapping, self._mapping = self._mapping, None
        self._pinned.close()
        if mapping is not None:
            with suppress(BufferError):  # the views that are out hold the last references
                mapping.close()


class Segment:
    """The prefill side's end: creates the memory and writes to it. ``reserve`` it before use."""

    def __init__(self, geometry: Geometry, pin: Pin = unpinned) -> None:
        """Raises Unusable where there is no such memory."""
        self.geometry = geometry
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            self.descriptor = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (OSError, AttributeError) as error:
            raise Unusable(f"no anonymous memory: {error}") from error
        self._memory = _Memory(pin)

    def reserve(self) -> None:
        """Take every page now, as later there would be a SIGBUS; map them and seal the memory.

        Takes milliseconds, so not on the event loop. Raises Unusable when there is not enough.
        """
        size = self.geometry.total_bytes
        try:
            os.ftruncate(self.descriptor, size)
            os.posix_fallocate(self.descriptor, 0, size)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self._memory.hold(mmap.mmap(self.descriptor, size, flags=flags))
            # A writable mapping is there by now, and will be the only one.
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        except OSError as error:
            raise Unusable(f"no shared memory of {size} bytes: {error}") from error
        with self._memory.lend(0, NONCE_BYTES) as start:
            start[:] = self.nonce

    def slot(self, slot: int) -> AbstractContextManager[memoryview]:
        """Where a slot's piece goes, for the body. Raises ValueError for one that is not there."""
        start = self.geometry.offset(slot)
        return self._memory.lend(start, start + self.geometry.slot_bytes)

    def put_sums(self, slot: int, sums: Sequence[int]) -> None:
        """Leave the checksums of a slot's blocks. Raises ValueError for more than it has."""
        with self._memory.lend(*self.geometry.sums(slot, len(sums))) as place:
            struct.pack_into(f"<{len(sums)}I", place, 0, *sums)

    def close_descriptor(self) -> None:
        """The peer has its own by now, and the mapping stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        self.close_descriptor()
        self._memory.close()


class ReadOnlySegment:
    """The decode side's end: can only read what arrived. ``map`` it before use."""

    def __init__(self, descriptor: int, geometry: Geometry, pin: Pin = unpinned) -> None:
        """Takes ``descriptor`` over."""
        self.geometry = geometry
        self._descriptor = descriptor
        self._memory = _Memory(pin)

    def map(self) -> None:
        """Map it, once. Raises Unusable unless it is what the peer says, sealed.

        Takes milliseconds, so not on the event loop.
        """
        size, flags = self.geometry.total_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE
        try:
            _require_sealed(self._descriptor, size)
            mapping = mmap.mmap(self._descriptor, size, flags=flags, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise Unusable(f"the descriptor that came cannot be mapped: {error}") from error
        finally:
            self._close_descriptor()
        self._memory.hold(mapping)

    @property
    def nonce(self) -> bytes:
        """Read back from the memory."""
        with self._memory.lend(0, NONCE_BYTES) as start:
            return bytes(start)

    def slot(self, slot: int, nbytes: int) -> AbstractContextManager[memoryview]:
        """What a slot holds, for the body. Raises ValueError for more than it can."""
        if not 0 < nbytes <= self.geometry.slot_bytes:
            raise ValueError(f"{nbytes} bytes in a slot of {self.geometry.slot_bytes}")
        start = self.geometry.offset(slot)
        return self._memory.lend(start, start + nbytes)

    def sums(self, slot: int, count: int) -> Sequence[int]:
        """The first ``count`` checksums of a slot. Raises ValueError for more than it has."""
        with self._memory.lend(*self.geometry.sums(slot, count)) as place:
            return struct.unpack(f"<{count}I", place)

    def close(self) -> None:
        self._close_descriptor()
        self._memory.close()

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def unavailable() -> str:
    """Why this process can have no such memory; empty when it can."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    try:
        segment = Segment(Geometry(1, mmap.PAGESIZE, 1))
        try:
            segment.reserve()
        finally:
            segment.close()
    except Unusable as error:
        return str(error)
    return ""


def _require_sealed(descriptor: int, size: int) -> None:
    """Raises ValueError unless the memory has this size and will keep it."""
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS:
        raise ValueError(f"its seals {seals:#x} are not all of {_SEALS:#x}")
    actual = os.fstat(descriptor).st_size
    if actual != size:
        raise ValueError(f"it has {actual} bytes, not {size}")
