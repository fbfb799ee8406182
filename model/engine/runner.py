"""The seam between deciding and computing: what the engine asks of whatever owns the device.

Two products stand behind it: ``torch_runner`` (the model) and ``mock_runner`` (a cost model,
without torch). Everything above this line knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from baton.identity import CompatibilityClass
from baton.kv.transport import Region
from model.engine.plan import StepPlan, StepResult

#: Called on the engine thread with a layer's index as soon as that layer's K and V of every
#: slice in the running plan are in the pool and may be read.
LayerListener = Callable[[int], None]


class BlockStore(Protocol):
    """The KV pool as plain bytes, for the hand-off. Knows no torch in its signatures.

    One block of one layer is ``compatibility.block_bytes`` long: K then V, each
    [block_size, kv_heads, head_size] FP16, row major. Safe to call from the event loop; a
    device store moves bytes on a thread of its own. Callers own the blocks they name, and no
    running step reads or writes the ones being written.
    """

    @property
    def block_bytes(self) -> int: ...

    @property
    def region(self) -> Region:
        """Where it lies, for transports that take bytes from there by themselves."""
        ...

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        """Call ``tell`` on the event loop when what was computed of ``layer`` so far is in memory.

        At once, where computing and memory are the processor's. ``read`` waits by itself.
        """
        ...

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        """The bytes of the given blocks, in order; valid until the blocks are released."""
        ...

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        """Copy the given blocks, in order, to ``target``, which is as long as they are.

        For memory that is shared or registered: one copy less than with ``read``. Other threads
        run meanwhile. Raises ValueError on any other length.
        """
        ...

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        """Write ``len(blocks) * block_bytes`` bytes. Raises ValueError on any other length."""
        ...

    def pin(self, memory: memoryview) -> AbstractContextManager[None]:
        """Let a device copy to and from ``memory`` directly, for the body, where it can.

        Entering takes milliseconds, so not on the event loop. Leaving does not wait: copies under
        way end first, and ``memory`` is kept for as long.
        """
        ...


class Runner(Protocol):
    """Executes step plans, one at a time, always on the same thread (the engine's)."""

    @property
    def compatibility(self) -> CompatibilityClass: ...

    @property
    def numerics_id(self) -> str:
        """Equal ids promise bitwise equal results under --deterministic."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool; block ids are 0 .. num_blocks - 1."""
        ...

    @property
    def store(self) -> BlockStore: ...

    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        """Compute the plan, write K and V of every slice into its blocks, sample where asked.

        ``on_layer`` is called once per layer, in order. A failure of one sequence (KvOverflow)
        is reported in the result; a failure of the whole step is raised.
        """
        ...

    def close(self) -> None: ...
