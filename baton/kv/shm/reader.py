"""The decode side of ``shm``: one link per prefill instance, shared by the hand-offs from it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TypeAlias

import structlog

from baton.errors import HandoffFailed, PeerError, PrefillLost
from baton.kv.framing import Piece
from baton.kv.shm import NAME, VERSION, messages
from baton.kv.shm.errors import Unusable
from baton.kv.shm.messages import Ended, Filled, Message
from baton.kv.shm.segment import Geometry, Pin, ReadOnlySegment, unavailable, unpinned
from baton.kv.shm.wire import PATIENCE, Wire, connect, name_of
from baton.kv.struck import Struck
from baton.kv.transport import Sink, Terms
from baton.tasks import finish
from baton.v1 import kv_pb2

log = structlog.get_logger(__name__)

_Event: TypeAlias = Filled | Ended | PeerError

#: Seconds between looks at KV that is not urgent. Every look interrupts the engine's step, however
#: little has come; twice as long, and what a fast GPU computes meanwhile would not fit in the ring.
_REST_S = 0.004


class ShmReader:
    """Implements ``Reader``."""

    name, version, checksums = NAME, VERSION, True

    def __init__(self, locate: Callable[[str], str] = name_of, *, pin: Pin = unpinned) -> None:
        """``locate``: the socket of a prefill instance; ``pin``: of the store that is filled."""
        self.unavailable = unavailable()
        self._locate = locate
        self._pin = pin
        self._links: dict[str, _Link] = {}
        self._dialling: dict[str, asyncio.Task[_Link]] = {}
        self._struck = Struck()  # instances that broke the protocol, and how

    async def start(self) -> None:
        """It dials when it offers."""

    async def offer(self, instance_id: str) -> kv_pb2.TransportOffer:
        """Offered without reservation only over a link that is proven, dialled here if need be."""
        reason = self.unavailable or self._struck.why(instance_id)
        if not reason:
            try:
                await self._reach(instance_id)
            except Unusable as error:
                reason = str(error)
        return kv_pb2.TransportOffer(name=NAME, version=VERSION, unavailable=reason)

    async def read(self, terms: Terms, sink: Sink) -> None:
        try:
            link = await self._reach(terms.instance_id)
        except Unusable as error:
            raise PrefillLost(f"reading KV from {terms.address}: {error}") from error
        try:
            await link.read(terms.token, sink)
        except PrefillLost as error:
            raise PrefillLost(f"reading KV from {terms.address}: {error.message}") from error
        sink.require_complete()

    async def close(self) -> None:
        """Close every link; what still reads over it gets PrefillLost."""
        dialling = set(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for link in list(self._links.values()):
            link.close()

    async def _reach(self, instance_id: str) -> _Link:
        """The link to an instance; whoever comes first dials for all. Raises Unusable."""
        if link := self._links.get(instance_id):
            return link
        task = self._dialling.get(instance_id)
        if task is None:
            task = asyncio.create_task(self._dial(instance_id), name="kv link")
            self._dialling[instance_id] = task
            task.add_done_callback(lambda _: self._dialling.pop(instance_id))
        return await asyncio.shield(task)

    async def _dial(self, instance_id: str) -> _Link:
        with ExitStack() as undo:
            wire = connect(self._locate(instance_id))
            undo.callback(wire.close)
            try:
                wire.require_same_user()
                async with asyncio.timeout(PATIENCE):
                    segment = await _receive(wire, self._pin)
                    undo.callback(segment.close)
                    await finish(asyncio.to_thread(segment.map))
                    await _be_proven(wire, segment)
            except TimeoutError:
                raise Unusable(f"it did not answer within {PATIENCE:g} s") from None
            except PeerError as error:
                raise Unusable(error.message) from error
            undo.pop_all()

        def lost(why: PeerError) -> None:
            self._links.pop(instance_id, None)
            if isinstance(why, HandoffFailed):
                self._struck.add(instance_id, why.message)
                log.warning("kv link broken", peer=instance_id, reason=why.message)

        link = self._links[instance_id] = _Link(wire, segment, lost)
        return link


class _Link:
    """One prefill instance: its ring, and what is read from it. Ends with its wire."""

    def __init__(
        self, wire: Wire, segment: ReadOnlySegment, lost: Callable[[PeerError], None]
    ) -> None:
        """Takes wire and segment over; ``lost`` is called when they are gone."""
        self._wire = wire
        self._segment = segment
        self._lost = lost
        self._started = 0
        self._full: set[int] = set()  # slots that are ours to read
        self._readings: dict[int, asyncio.Queue[_Event]] = {}  # at most as long as the ring
        self._urgent: set[int] = set()
        wire.listen(self._on_message, self._on_lost)

    async def read(self, token: bytes, sink: Sink) -> None:
        """Read one hand-off to its end. Raises HandoffFailed or PrefillLost.

        However it ends, every slot goes back to the prefill side.
        """
        reading, ended = self._started, False
        self._started += 1
        events = self._readings[reading] = asyncio.Queue()
        if sink.urgent:
            self._hurry(reading)
        sink.on_urgent = partial(self._hurry, reading)
        self._wire.send(messages.Read(reading, token))
        try:
            while not ended:
                match await events.get():
                    case Filled() as filled:
                        await self._empty(filled, sink)
                    case Ended(_, reason):
                        ended = True
                        if reason:
                            raise PrefillLost(reason)
                    case error:
                        raise error
        finally:
            del self._readings[reading]
            self._urgent.discard(reading)
            while not events.empty():
                if isinstance(event := events.get_nowait(), Filled):
                    self._release(event.slot)
            if not ended:
                self._wire.send(messages.Cancel(reading))

    def _hurry(self, reading: int) -> None:
        """From here on somebody waits for the last byte of it."""
        if reading in self._readings:
            self._urgent.add(reading)
            self._wire.wake()

    def close(self) -> None:
        self._wire.close()
        self._on_lost(PrefillLost("this worker is leaving"))

    async def _empty(self, filled: Filled, sink: Sink) -> None:
        piece = Piece(filled.layer, filled.start, filled.end)
        try:
            with self._segment.slot(filled.slot, filled.nbytes) as payload:
                sums = self._segment.sums(filled.slot, filled.checksums)
                await sink.write(piece, payload, sums)
        finally:
            self._release(filled.slot)

    def _release(self, slot: int) -> None:
        """Nothing reads the slot any more."""
        self._full.discard(slot)
        self._wire.send(messages.Consumed(slot))

    def _on_message(self, message: Message) -> None:
        match message:
            case Filled(reading, slot) if self._may_be(message):
                self._full.add(slot)
                if not self._urgent:
                    self._wire.rest(_REST_S)
                if reading in self._readings:
                    self._readings[reading].put_nowait(message)
                else:  # it was cancelled while this was under way
                    self._release(slot)
            case Ended(reading):
                if reading in self._readings:
                    self._readings[reading].put_nowait(message)
            case messages.Broken(reason):
                raise HandoffFailed(f"the prefill worker broke the link: {reason}")
            case _:
                raise HandoffFailed(f"the prefill worker says {message}, which cannot be now")

    def _may_be(self, filled: Filled) -> bool:
        geometry = self._segment.geometry
        return (
            filled.reading < self._started
            and filled.slot < geometry.slots
            and filled.slot not in self._full
            and 0 < filled.nbytes <= geometry.slot_bytes
            and filled.checksums <= geometry.slot_blocks
        )

    def _on_lost(self, why: PeerError) -> None:
        kind = HandoffFailed if isinstance(why, HandoffFailed) else PrefillLost
        for events in self._readings.values():
            while not events.empty():
                events.get_nowait()  # its slot goes with the segment
            events.put_nowait(kind(why.message))
        self._segment.close()  # a slot that is being copied keeps the mapping until it is
        self._lost(why)


async def _receive(wire: Wire, pin: Pin) -> ReadOnlySegment:
    """The ring that the prefill side hands over. Raises Unusable, or PeerError when it is gone."""
    hello, descriptors = await wire.receive()
    try:
        if isinstance(hello, messages.Hello) and hello.version == VERSION and descriptors:
            return ReadOnlySegment(descriptors.pop(), Geometry(*hello[1:]), pin)
        raise _refused(hello)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _be_proven(wire: Wire, segment: ReadOnlySegment) -> None:
    """Show that the memory which came is the peer's. Raises Unusable or PeerError."""
    wire.send(messages.Proof(segment.nonce))
    answer = await wire.receive_bare()
    if answer != messages.Proven():
        raise _refused(answer)


def _refused(answer: Message) -> Unusable:
    if isinstance(answer, messages.Broken):
        return Unusable(f"it refuses: {answer.reason}")
    return Unusable(f"it answers {answer}")
