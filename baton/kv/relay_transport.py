"""Both ends of KV through a relay: ``grpc`` under another name, by way of another address."""

from __future__ import annotations

from dataclasses import replace

from baton.kv.connections import Connections
from baton.kv.grpc_transport import VERSION, GrpcOffer, GrpcOutlet, GrpcReader
from baton.kv.relay import NAME
from baton.kv.transport import Sink, Source, Terms
from baton.tls.names import Party
from baton.v1 import kv_pb2


class RelayOutlet:
    """The prefill side: what ``grpc`` serves, under another name. Implements ``Outlet``."""

    name, version, unavailable = NAME, VERSION, ""

    def __init__(self, served: GrpcOutlet) -> None:
        self._served = served

    async def start(self) -> None:
        """``served`` is ready as it is."""

    async def close(self) -> None:
        """Nothing is its own."""

    def open(self, source: Source) -> GrpcOffer:
        offer = self._served.open(source)
        offer.choice.name = NAME
        offer.choice.ClearField("address")  # the relay asks where it sent the call
        return offer


class RelayReader:
    """The decode side. Implements ``Reader``."""

    name, version, checksums = NAME, VERSION, True

    def __init__(self, connections: Connections, address: str | None) -> None:
        """``address`` (host:port) of the relay; None where there is none."""
        self.unavailable = "" if address else "no --relay is given"
        self._address = address or ""
        self._frames = GrpcReader(connections, party=Party.RELAY)

    async def start(self) -> None:
        """It dials when it reads."""

    async def close(self) -> None:
        """The connections are another's."""

    async def offer(self, instance_id: str) -> kv_pb2.TransportOffer:
        offer = await self._frames.offer(instance_id)
        offer.name = NAME
        offer.unavailable = self.unavailable
        return offer

    async def read(self, terms: Terms, sink: Sink) -> None:
        """Over connections to the relay, whichever prefill worker is behind it."""
        there = replace(terms, address=self._address, instance_id=self._address)
        await self._frames.read(there, sink)
