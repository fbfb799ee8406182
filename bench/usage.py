"""What a stretch of work costs this process: CPU seconds, and memory at its peak."""

from __future__ import annotations

import ctypes
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_RESET_PEAK = "5"  # proc(5), clear_refs


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_s: float  #: of all threads, in user and kernel
    peak_bytes: int  #: how far resident memory grew beyond what it was at the start


class Meter:
    """Starts when it is made. One at a time in a process, as the peak is the process's."""

    def __init__(self) -> None:
        """Raises OSError where the kernel does not reset the peak (anywhere but on Linux)."""
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        self._resident = _status("VmRSS")
        self._cpu = time.process_time()

    def read(self) -> Usage:
        cpu_s = time.process_time() - self._cpu
        return Usage(cpu_s, max(0, _status("VmHWM") - self._resident))


def trim() -> None:
    """Give free memory back to the kernel, so that what is used next counts as growth.

    Without glibc it does nothing, and growth may be hidden by what was freed before.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had. Raises OSError where it is gone, or not on Linux."""
    return _status("VmHWM", str(pid))


def cpu_seconds(pid: int) -> float:
    """What the threads that a process has now have taken. Raises OSError as ``peak_bytes``."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def available_bytes() -> int:
    """Memory that processes can still get. Raises OSError where it is not Linux."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _status(field: str, process: str = "self") -> int:
    return _field(Path("/proc") / process / "status", field)


def _field(file: Path, field: str) -> int:
    """Bytes, of a field that is in kB."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", file.read_text(), re.M)
    if found is None:
        raise OSError(f"{file} has no {field}")
    return int(found[1]) * 1024
