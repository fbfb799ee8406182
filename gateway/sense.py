"""What a worker's status may say: it is compared with what others say, added up and shown, and one
that lies must not spoil the rest."""

from __future__ import annotations

import math

from baton.errors import IncompatiblePeer
from baton.v1 import worker_pb2

#: Entries of each list: one for every prefill worker of a large fleet.
MOST_LISTED = 4096


def require_sense(status: worker_pb2.WorkerStatus) -> None:
    """Raises IncompatiblePeer for lists without end, and for what is no measurement."""
    for name, listed in (
        ("transports", status.transports),
        ("prefill_decisions", status.prefill_decisions),
        ("kv_pairings", status.kv_pairings),
        ("refused", status.refused),
    ):
        if (count := len(listed)) > MOST_LISTED:
            raise IncompatiblePeer(f"its status has {count} {name}, but {MOST_LISTED} are allowed")
    _require_measured("load.prefill_us_per_token", status.load.prefill_us_per_token)
    for pairing in status.kv_pairings:
        _require_measured("kv_pairings.bytes_per_s", pairing.bytes_per_s)


def _require_measured(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise IncompatiblePeer(
            f"its status says {name} {value}, which must be finite and not below 0"
        )
