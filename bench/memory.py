"""Memory in flight: what both ends grow by when a long prompt's KV is there and is read slowly.

All of it is offered at once over the real transports, between two processes that have only their
memory for KV, touched beforehand. So what they grow by is what the transport holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.channels import KV_FRAME_BYTES
from baton.settings import HandoffSettings, ReadingSettings
from bench.job import KIB, MIB, Job
from bench.pair import Run, pair
from bench.records import Param, Record

#: KV of one token in all layers, about that of SmolLM2-135M.
TOKEN_KIB = 24
#: MB per second that the receiver takes, and seconds until it gives up.
SLOW_MB_S, PATIENCE_S = 20, 2.0
#: What a process takes for its first connection, whatever it carries.
BREATH = 4 * MIB
#: What grpc takes for its window, whose bytes lie in half-filled buffers, and beside it: messages
#: being joined, written, put together and read, and what the C heap keeps of them. As measured with
#: windows of 1 to 8 MiB.
_PER_WINDOW, _GRPC_FRAMES = 4, 16

#: Bytes that the settings allow each end to grow by.
BOUNDS: dict[str, int] = {
    "shm": HandoffSettings.model_fields["shm_bytes"].default,
    "grpc": _PER_WINDOW * ReadingSettings.model_fields["grpc_window_bytes"].default
    + _GRPC_FRAMES * KV_FRAME_BYTES,
    "nixl": 0,  # from pool to pool
}


async def measure(
    transports: Sequence[str], tokens: int, say: Callable[[str], None]
) -> list[Record]:
    """Each transport. Raises PeerFailed, and ValueError for tokens that are no whole MiB."""
    nbytes = tokens * TOKEN_KIB * KIB
    if tokens < 1 or nbytes % MIB:
        raise ValueError(f"KV of {tokens} tokens, {TOKEN_KIB} KiB each, is no whole number of MiB")
    found: list[Record] = []
    for transport in transports:  # new processes each: nothing was freed that could be used again
        say(f"memory in flight over {transport}")
        async with pair(nbytes) as processes:
            job = Job(transport, nbytes // MIB, TOKEN_KIB, 0, SLOW_MB_S, PATIENCE_S)
            found += evaluate(transport, tokens, await processes.move(job))
    return found


def evaluate(transport: str, tokens: int, run: Run) -> list[Record]:
    """The records of one transport."""
    allowed = BOUNDS[transport] + BREATH
    params: dict[str, Param] = {"path": transport, "tokens": tokens, "MB/s": SLOW_MB_S}
    grown = {"sender": run.sender_peak_bytes, "receiver": run.receiver_peak_bytes}
    found = [Record("KV", tokens * TOKEN_KIB * KIB / MIB, "MiB", params)]
    found.append(Record("bound", allowed / MIB, "MiB", params))
    found += (Record(f"{end} grew", value / MIB, "MiB", params) for end, value in grown.items())
    found.append(Record("growth / bound", max(grown.values()) / allowed, "ratio", params))
    return found
