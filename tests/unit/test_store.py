"""Bytes in and out of the pool: nobody is kept waiting who need not be."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest

from model.cache.cuda_store import StepWrites
from model.cache.store import HostStore

BLOCKS, BLOCK_BYTES = 512, 2**17


@pytest.fixture
def patient() -> Iterator[None]:
    """Nobody is made to give the interpreter up: another thread runs only if it is let."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(100)
    yield
    sys.setswitchinterval(usual)


def run_while(copy: Callable[[], Awaitable[None]]) -> int:
    """How often another thread gets the interpreter while ``copy``, which never waits, runs."""
    turns, over, begun = 0, False, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        begun.set()
        while not over:
            turns += 1
            threading.Event().wait(1e-5)

    other = threading.Thread(target=take_turns)
    other.start()
    begun.wait()
    before = turns
    with pytest.raises(StopIteration):
        copy().__await__().__next__()
    after, over = turns, True
    other.join()
    return after - before


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("direction", ["out", "in"])
def test_others_run_while_bytes_are_copied(direction: str) -> None:
    pool = np.ones((1, BLOCKS, BLOCK_BYTES // 2), dtype=np.float16)
    store, data = HostStore(pool), memoryview(bytearray(BLOCKS * BLOCK_BYTES))
    move = store.read_into if direction == "out" else store.write
    turns = [run_while(lambda: move(0, range(BLOCKS), data)) for _ in range(5)]
    assert max(turns) > 0


def test_a_read_waits_for_what_the_running_step_writes_and_for_nothing_else() -> None:
    writes = StepWrites[str]()
    assert writes.awaited(0, [1, 2]) is None and not writes.some
    writes.begin([4, 5])
    writes.mark(0, "step 1, layer 0")
    assert writes.some
    assert writes.awaited(0, [3, 4]) == "step 1, layer 0"
    assert writes.awaited(0, [1, 2]) is None, "written by a step that has ended"
    with pytest.raises(RuntimeError, match="layer 1 is read before it is computed"):
        writes.awaited(1, [5])
    writes.begin([6])
    writes.mark(0, "step 2, layer 0")
    assert writes.awaited(0, [4, 5]) is None, "not for the next chunk"
    assert writes.awaited(0, [6]) == "step 2, layer 0"
    writes.begin([])
    assert not writes.some
