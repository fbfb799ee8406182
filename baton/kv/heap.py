"""The C heap, told to keep the memory of messages for the next ones.

A KV message is about a MiB. By default glibc gives so large a piece back to the kernel when it is
freed, and takes it anew, page by page, for the next message: that costs more than all copies of it.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

#: Bytes that stay with the process when they are free, at most, for each of its heaps.
KEPT_BYTES = 64 * 2**20
#: Pieces from this size on go back at once all the same. glibc allows no more.
_LARGE_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Settle it for this process; call it once, first thing. False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    return all(
        mallopt(what, value) == 1
        for what, value in ((_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES))
    )
