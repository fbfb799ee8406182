"""Hand-offs over NIXL without workers.

``python -m tests.nixl INSTANCE TOKENS`` is a prefill side of its own, for tests that kill it: it
prints the terms of an offer of everything.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import pytest

from baton.kv.nixl.outlet import NixlOffer, NixlOutlet
from baton.kv.nixl.reader import NixlReader
from baton.kv.transport import Terms, started
from baton.v1 import kv_pb2
from tests.shm import HandOff

needs_nixl = pytest.mark.skipif(
    find_spec("nixl") is None, reason="NIXL is not installed (make nixl)"
)


def terms(instance_id: str, offer: NixlOffer, address: str = "prefill:1") -> Terms:
    return Terms(address, instance_id, offer.token, offer.choice)


def told(hand_off: HandOff, end: int | None = None) -> None:
    """As the Prefill call tells that this much is computed."""
    for layer in range(hand_off.shape.layers):
        hand_off.sink.ready(layer, hand_off.shape.end if end is None else end)


@asynccontextmanager
async def outlet(instance_id: str, hand_off: HandOff) -> AsyncIterator[NixlOutlet]:
    """Of the pool that ``hand_off`` comes from."""
    made = NixlOutlet(instance_id, hand_off.there.region)
    async with started([made]):
        assert not made.unavailable, made.unavailable
        yield made


@asynccontextmanager
async def reader(hand_off: HandOff) -> AsyncIterator[NixlReader]:
    """Of the pool that ``hand_off`` goes to."""
    made = NixlReader(hand_off.here.region)
    async with started([made]):
        assert not made.unavailable, made.unavailable
        yield made


async def _serve(instance_id: str, tokens: int) -> None:
    hand_off = HandOff(tokens)
    async with outlet(instance_id, hand_off) as made:
        offer = made.open(hand_off.source)
        print(offer.token.hex(), offer.choice.SerializeToString().hex(), flush=True)
        await asyncio.Event().wait()


def parse(instance_id: str, line: str) -> Terms:
    token, choice = (bytes.fromhex(part) for part in line.split())
    return Terms("prefill:1", instance_id, token, kv_pb2.TransportChoice.FromString(choice))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
