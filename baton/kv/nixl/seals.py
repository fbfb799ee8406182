"""Seals: small registered memory, a few bytes per hand-off, beside the pool."""

from __future__ import annotations

import ctypes
import mmap

from baton.errors import WorkerFull

SEAL_BYTES = 16
#: Hand-offs that can be open at once.
MAX_SEALS = 4096


class Seals:
    """So many places of ``SEAL_BYTES``, for as long as this object lives."""

    def __init__(self) -> None:
        self.nbytes = MAX_SEALS * SEAL_BYTES
        self._memory = mmap.mmap(-1, self.nbytes)
        self._anchor = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._anchor)
        self._free = list(range(MAX_SEALS))

    def take(self) -> int:
        """The address of a blank place. Raises WorkerFull when there is none."""
        if not self._free:
            raise WorkerFull(f"{MAX_SEALS} hand-offs over nixl are open already")
        return self.address + self._free.pop() * SEAL_BYTES

    def give_back(self, address: int) -> None:
        """Blank it, for the next one."""
        self.write(address, bytes(SEAL_BYTES))
        self._free.append((address - self.address) // SEAL_BYTES)

    def write(self, address: int, seal: bytes) -> None:
        start = address - self.address
        self._memory[start : start + SEAL_BYTES] = seal

    def read(self, address: int) -> bytes:
        start = address - self.address
        return self._memory[start : start + SEAL_BYTES]
