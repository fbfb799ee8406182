"""Keys of KV blocks by what they hold: made by workers for their caches, by gateways to know which
worker caches what.

A key is blake2b-128 of (parent key, token ids of one full block), so it names the whole prefix up
to and including the block (the chained block hash of vLLM's prefix cache, with a digest that nobody
can collide on purpose). Chains are rooted in (model revision and layout, salt): KV of another
model, or of a tenant with another salt, can never be found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

KEY_BYTES = 16
#: Of each key, what workers tell of their caches: a mistaken one costs a worse placement at most.
DIGEST_BYTES = 8
_ID_BYTES = array("I").itemsize


class PrefixKeys:
    """Makes keys for one layout. Holds no tokens; pure."""

    def __init__(self, layout: str, block_size: int) -> None:
        """``layout``: whatever must be equal for one block's bytes to serve another sequence:
        ``CompatibilityClass.layout``. ``block_size``: tokens."""
        self.block_size = block_size
        self._layout = blake2b(layout.encode(), digest_size=KEY_BYTES).digest()

    def root(self, salt: bytes) -> bytes:
        """What the first key of every chain of a salt builds on."""
        salted = blake2b(self._layout + salt, digest_size=KEY_BYTES, person=b"baton-root")
        return salted.digest()

    def keys(self, parent: bytes, tokens: Sequence[int]) -> list[bytes]:
        """The keys of the full blocks of ``tokens``, each id in 0 .. 2^32 - 1, that follow
        ``parent``, the key of the block before or the root."""
        raw, step = array("I", tokens).tobytes(), self.block_size * _ID_BYTES
        keys = []
        for start in range(0, len(raw) - step + 1, step):
            parent = blake2b(parent + raw[start : start + step], digest_size=KEY_BYTES).digest()
            keys.append(parent)
        return keys


def pack_digests(keys: Iterable[bytes]) -> bytes:
    """The digests of ``keys``, one after the other."""
    return b"".join(key[:DIGEST_BYTES] for key in keys)


def unpack_digests(packed: bytes) -> list[int]:
    """What ``pack_digests`` packed, each digest as ``digest`` has it. Raises ValueError when it is
    no whole number of them."""
    if len(packed) % DIGEST_BYTES:
        raise ValueError(f"{len(packed)} bytes are no whole number of {DIGEST_BYTES}-byte digests")
    return [
        int.from_bytes(packed[start : start + DIGEST_BYTES], "little")
        for start in range(0, len(packed), DIGEST_BYTES)
    ]


def digest(key: bytes) -> int:
    """A key's digest as a number."""
    return int.from_bytes(key[:DIGEST_BYTES], "little")
