"""Who a worker is and whom it may pair with: the handshake of every Baton connection."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import NamedTuple

from baton.errors import IncompatiblePeer

#: This build speaks PROTOCOL and accepts PROTOCOL - 1, so a fleet can be upgraded while it runs.
PROTOCOL = 2
OLDEST_PROTOCOL = 1

#: Tokens of a KV block, at most: far more than makes sense.
MAX_BLOCK_SIZE = 65_536


def new_instance_id() -> str:
    """128 random bits, hex. A restarted worker at its old address is a new instance."""
    return secrets.token_hex(16)


class Role(Enum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"


#: What a worker may be told to do, as settings and commands name it.
ROLES: Mapping[str, frozenset[Role]] = {
    "prefill": frozenset({Role.PREFILL}),
    "decode": frozenset({Role.DECODE}),
    "both": frozenset(Role),
}


def named(roles: frozenset[Role]) -> str:
    """The name of ``roles`` in ROLES."""
    return next(name for name, meant in ROLES.items() if meant == roles)


@dataclass(frozen=True, slots=True)
class CompatibilityClass:
    """Everything that must be equal for the KV of one worker to mean anything to another."""

    model_revision: str  #: digest of configuration and weights
    layers: int
    kv_heads: int
    head_size: int
    block_size: int  #: tokens per KV block
    kv_dtype: str = "float16"
    parallel: str = "tp1"  #: how heads and layers are split over devices

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block of one layer: K then V, each [block_size, kv_heads, head_size]."""
        return 2 * self.block_size * self.kv_heads * self.head_size * 2

    @property
    def layout(self) -> str:
        """What the keys of KV blocks are rooted in: equal for equal classes, in any process."""
        return repr(self)


class Family(NamedTuple):
    """Workers that may pair: one class and, where bits are promised, one way to compute them."""

    compatibility: CompatibilityClass | None
    numerics_id: str  #: empty where no bits are promised

    @property
    def digest(self) -> str:
        """Names it to a client, for whom it is opaque: blake2b-64, hex."""
        return _digest(self)


@functools.lru_cache(maxsize=64)  # told with every answer, and there are few
def _digest(family: Family) -> str:
    return hashlib.blake2b(repr(family).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process says of itself in a handshake."""

    instance_id: str
    compatibility: CompatibilityClass | None  #: None for a gateway, which holds no KV
    numerics_id: str = ""  #: equal ids give bitwise equal results under --deterministic
    protocol: int = PROTOCOL
    deterministic: bool = False

    @property
    def takes_choices(self) -> bool:
        """Whether it knows of several choices in one attempt (Generation.more_choices)."""
        return self.protocol >= 2

    @property
    def family(self) -> Family:
        """What two workers must share to pair, and for a replay to go on exactly."""
        return Family(self.compatibility, self.numerics_id if self.deterministic else "")

    @property
    def numerics(self) -> str:
        """In words."""
        return f"{self.numerics_id!r}, {'' if self.deterministic else 'not '}deterministic"


def require_pair(*, prefill: Identity, decode: Identity) -> None:
    """Raise IncompatiblePeer, naming what differs with both values, unless KV of ``prefill`` may
    serve ``decode``."""
    ours, theirs = prefill.compatibility, decode.compatibility
    if ours is None or theirs is None:
        raise IncompatiblePeer("the peer names no compatibility class: not a worker")
    differing = [
        f"{f.name} {getattr(ours, f.name)!r} of the prefill worker, "
        f"{getattr(theirs, f.name)!r} of the decode worker"
        for f in fields(ours)
        if getattr(ours, f.name) != getattr(theirs, f.name)
    ]
    if differing:
        raise IncompatiblePeer("compatibility class differs: " + "; ".join(differing))
    if prefill.family != decode.family:
        raise IncompatiblePeer(
            f"numerics differ, which --deterministic forbids: {prefill.numerics}, of the prefill "
            f"worker, {decode.numerics}, of the decode worker"
        )


def require_protocol(theirs: int) -> None:
    """Raise IncompatiblePeer unless the peer's protocol version is one this build speaks."""
    if not OLDEST_PROTOCOL <= theirs <= PROTOCOL + 1:
        raise IncompatiblePeer(
            f"protocol version {theirs} there, {OLDEST_PROTOCOL} to {PROTOCOL} here"
        )
