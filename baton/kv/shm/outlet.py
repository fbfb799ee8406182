"""The prefill side of ``shm``: links of decode workers, and the offers that they read."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial

import structlog

from baton.errors import BatonError, HandoffFailed, PeerError
from baton.kv.framing import Cutter
from baton.kv.progress import Progress
from baton.kv.shm import NAME, VERSION, messages
from baton.kv.shm.errors import Unusable
from baton.kv.shm.messages import Message
from baton.kv.shm.segment import Geometry, Pin, Segment, unavailable, unpinned
from baton.kv.shm.wire import PATIENCE, Wire, listen, name_of
from baton.kv.transport import Source
from baton.tasks import finish
from baton.v1 import kv_pb2

log = structlog.get_logger(__name__)

#: About so many bytes per slot: the copying of a piece outweighs telling of it, and a few slots
#: stay within the processor's cache.
PIECE_BYTES = 2 * 2**20


class ShmOffer:
    """One hand-off, open until ``close``, for one reading. Implements ``Offer``."""

    told = False

    def __init__(self, source: Source, forget: Callable[[bytes], None]) -> None:
        self.token = secrets.token_bytes(16)
        self.choice = kv_pb2.TransportChoice(name=NAME)
        self.source = source
        self.progress = Progress(source.shape)
        self.reading: asyncio.Task[None] | None = None  #: set by the link that serves it
        self._forget = forget

    def ready(self, layer: int, end: int) -> None:
        self.progress.advance(layer, end)

    def close(self) -> None:
        self._forget(self.token)
        if self.reading is not None:
            self.reading.cancel()


class ShmOutlet:
    """Every open offer, and the links over which they are read. An ``Outlet``."""

    name, version = NAME, VERSION

    def __init__(
        self, instance_id: str, *, total_bytes: int, block_bytes: int, pin: Pin = unpinned
    ) -> None:
        """``total_bytes``: of shared memory per decode worker; ``block_bytes``: of a layer's KV
        block; ``pin``: of the store whose blocks are offered."""
        self.unavailable = "not started"
        self._instance_id = instance_id
        self._sizes = (total_bytes, PIECE_BYTES, block_bytes)
        self._pin = pin
        self._geometry = Geometry(0, 0, 0)
        self._listener: socket.socket | None = None
        self._offers: dict[bytes, ShmOffer] = {}
        self._welcoming: set[asyncio.Task[None]] = set()
        self._links: set[_Link] = set()

    async def start(self) -> None:
        """Listen for decode workers; where that cannot be, ``unavailable`` says why."""
        try:
            self._geometry = Geometry.fit(*self._sizes)
            if reason := unavailable():
                raise Unusable(reason)
            self._listener = listen(name_of(self._instance_id))
        except Unusable as error:
            self.unavailable = str(error)
            log.warning("shm transport unavailable", reason=self.unavailable)
            return
        self.unavailable = ""
        self._listen()

    async def close(self) -> None:
        """Refuse new links, end the others with their readings, free their memory."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        ending = set(self._welcoming)
        for task in ending:
            task.cancel()
        for link in list(self._links):
            ending |= link.close("the prefill worker is leaving")
        await asyncio.gather(*ending, return_exceptions=True)

    def open(self, source: Source) -> ShmOffer:
        offer = ShmOffer(source, self._forget)
        self._offers[offer.token] = offer
        return offer

    def _forget(self, token: bytes) -> None:
        self._offers.pop(token, None)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """One connection per wake-up."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # gone again
            return
        except OSError as error:  # no descriptor left: it would wake us for ever
            log.warning("kv link not accepted", reason=str(error))
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(PATIENCE, self._listen)
            return
        wire = Wire(connection)
        task = asyncio.create_task(self._welcome(wire), name="kv link")
        self._welcoming.add(task)

        def welcomed(_: asyncio.Task[None]) -> None:
            self._welcoming.discard(task)
            if task.cancelled():  # perhaps before it began
                wire.close()

        task.add_done_callback(welcomed)

    async def _welcome(self, wire: Wire) -> None:
        """Let a process of this host and user in; close the connection of any other."""
        with ExitStack() as undo:
            undo.callback(wire.close)
            try:
                wire.require_same_user()
                segment = Segment(self._geometry, self._pin)
                undo.callback(segment.close)
                await finish(asyncio.to_thread(segment.reserve))
                async with asyncio.timeout(PATIENCE):
                    await _prove(wire, segment)
            except (Unusable, PeerError, OSError) as error:  # a TimeoutError is an OSError
                reason = str(error) or f"no proof came within {PATIENCE:g} s"
                log.warning("kv link refused", reason=reason)
                wire.send(messages.Broken(reason))
                return
            undo.pop_all()
        self._links.add(_Link(wire, segment, self._take, self._links.discard))

    def _take(self, token: bytes) -> ShmOffer | None:
        """The offer that a token opens: once."""
        return self._offers.pop(token, None)


class _Link:
    """One decode worker: its ring, and its readings. Ends with its wire."""

    def __init__(
        self,
        wire: Wire,
        segment: Segment,
        take: Callable[[bytes], ShmOffer | None],
        forget: Callable[[_Link], None],
    ) -> None:
        """Takes wire and segment over."""
        self._wire = wire
        self._segment = segment
        self._take = take
        self._forget = forget
        self._free: asyncio.Queue[int] = asyncio.Queue()  # readings get slots in turn
        self._full: set[int] = set()  # the decode worker's until it says Consumed
        self._readings: dict[int, asyncio.Task[None]] = {}
        for slot in range(segment.geometry.slots):
            self._free.put_nowait(slot)
        wire.listen(self._on_message, self._on_lost)

    def close(self, reason: str) -> set[asyncio.Task[None]]:
        """Say why, free the memory; returns what is still ending: its holds go with it."""
        self._wire.send(messages.Broken(reason))
        self._wire.close()
        return self._end()

    def _end(self) -> set[asyncio.Task[None]]:
        self._forget(self)
        readings = set(self._readings.values())
        for reading in readings:
            reading.cancel()
        self._segment.close()  # a cancelled reading does not touch it any more
        return readings

    def _on_lost(self, why: PeerError) -> None:
        log.info("kv link closed", readings=len(self._readings), reason=why.message)
        self._end()

    def _on_message(self, message: Message) -> None:
        match message:
            case messages.Read(reading, token):
                self._start(reading, token)
            case messages.Cancel(reading):
                if reading in self._readings:
                    self._readings[reading].cancel()
            case messages.Consumed(slot) if slot in self._full:
                self._full.remove(slot)
                self._free.put_nowait(slot)
            case messages.Broken(reason):
                raise PeerError(f"the decode worker broke the link: {reason}")
            case _:
                raise HandoffFailed(f"the decode worker says {message}, which cannot be now")

    def _start(self, reading: int, token: bytes) -> None:
        if reading in self._readings:
            raise HandoffFailed(f"reading {reading} starts twice")
        offer = self._take(token)
        if offer is None:
            reason = "no such hand-off: it was read before, or its Prefill call has ended"
            self._wire.send(messages.Ended(reading, reason))
            return
        task = asyncio.create_task(self._send(reading, offer), name="kv read")
        offer.reading = self._readings[reading] = task
        task.add_done_callback(partial(self._over, reading))

    async def _send(self, reading: int, offer: ShmOffer) -> None:
        """Fill slot after slot, as it is computed and as slots are free."""
        cutter = Cutter(offer.source.shape, self._segment.geometry.slot_bytes)
        with offer.source.hold():
            async with aclosing(offer.progress.pieces(cutter)) as pieces:
                async for piece in pieces:
                    slot = await self._free.get()
                    try:
                        with self._segment.slot(slot) as target:
                            nbytes = await offer.source.read_into(piece, target)
                            sums = offer.source.sums_of_payload(target[:nbytes])
                            self._segment.put_sums(slot, sums)
                    except BaseException:
                        self._free.put_nowait(slot)
                        raise
                    self._full.add(slot)
                    self._wire.send(messages.Filled(reading, slot, *piece, nbytes, len(sums)))

    def _over(self, reading: int, task: asyncio.Task[None]) -> None:
        """Called when a reading has ended, whatever ended it."""
        del self._readings[reading]
        reason = ""
        if task.cancelled():
            reason = "the Prefill call has ended"
        elif isinstance(error := task.exception(), BatonError):
            reason = error.message
        elif error is not None:
            log.error("kv reading failed", exc_info=error)
            reason = f"internal error: {error!r}"
        self._wire.send(messages.Ended(reading, reason))


async def _prove(wire: Wire, segment: Segment) -> None:
    """Hand the ring over and have its nonce read back.

    Raises Unusable when it is another, PeerError when the peer is gone.
    """
    geometry = segment.geometry
    hello = messages.Hello(VERSION, geometry.slots, geometry.slot_bytes, geometry.slot_blocks)
    wire.send(hello, [segment.descriptor])
    segment.close_descriptor()
    answer = await wire.receive_bare()
    if answer != messages.Proof(segment.nonce):
        raise Unusable("the peer has not read what is in the memory")
    wire.send(messages.Proven())
