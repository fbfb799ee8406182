"""One end of a link's socket: messages in order, the peer's user, a descriptor.

SOCK_SEQPACKET keeps messages apart, so there is nothing to reassemble. Notifications are few: one
each way per piece, bounded by the number of slots, and some per hand-off. Those that the socket
does not take at once wait here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from baton.errors import HandoffFailed, PeerError
from baton.kv.shm.errors import Unusable
from baton.kv.shm.messages import MAX_BYTES, Broken, Message, decode, encode

#: Messages taken per wake-up of the event loop, so that others get their turn.
_BATCH = 16
#: Messages kept for a peer that is slow to read them; beyond that it breaks the protocol.
_MAX_UNSENT = 4096
#: Seconds that each side of a new link gives the other to answer.
PATIENCE = 1.0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

OnMessage = Callable[[Message], None]
#: Called once, with what ended the link: HandoffFailed when the peer broke the protocol.
OnLost = Callable[[PeerError], None]


def name_of(instance_id: str) -> str:
    """The abstract Unix socket of a prefill instance: it has no file, and ends with its owner."""
    return f"\0baton-kv-{instance_id}"


def listen(name: str) -> socket.socket:
    """A non-blocking listening socket. Raises Unusable."""
    try:
        listener = _socket()
        try:
            listener.bind(name)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise Unusable(f"no Unix socket: {error}") from error
    return listener


def connect(name: str) -> Wire:
    """A wire to the process that listens at ``name``. Raises Unusable when there is none."""
    try:
        connection = _socket()
        try:
            connection.connect(name)
        except OSError:
            connection.close()
            raise
    except ConnectionRefusedError:
        raise Unusable(
            "no process there listens on this host (or in this network namespace)"
        ) from None
    except OSError as error:
        raise Unusable(f"no Unix socket: {error}") from error
    return Wire(connection)


def _socket() -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system has none")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


class Wire:
    """Owns a connected socket until ``close``. ``receive`` at first, then ``listen``.

    Used on one event loop only.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Takes ``connection`` over, and makes it non-blocking."""
        connection.setblocking(False)
        self._socket: socket.socket | None = connection
        self._loop = asyncio.get_running_loop()
        self._sent = 0
        self._received = 0
        self._on_message: OnMessage | None = None
        self._on_lost: OnLost | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._unsent: deque[bytes] = deque()

    @property
    def closed(self) -> bool:
        return self._socket is None

    @property
    def _open(self) -> socket.socket:
        if self._socket is None:
            raise BrokenPipeError("it is closed at this end")
        return self._socket

    def require_same_user(self) -> None:
        """Raises Unusable when the peer process runs as another user."""
        raw = self._open.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, theirs, _ = _CREDENTIALS.unpack(raw)
        if theirs != os.geteuid():
            raise Unusable(f"the peer runs as user {theirs}, this process as {os.geteuid()}")

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Never waits. What is said after the peer is lost goes nowhere; ``listen`` tells."""
        if self._socket is None:
            return
        data = encode(self._sent, message)
        self._sent += 1
        if self._unsent:
            self._wait_to_send(data)
            return
        try:
            socket.send_fds(self._socket, [data], list(descriptors))
        except BlockingIOError:
            self._wait_to_send(data)
        except OSError as error:
            self._lose(PeerError(f"the KV link broke: {error}"))

    def _wait_to_send(self, data: bytes) -> None:
        """Keep what the socket does not take now: many hand-offs may begin or end at once."""
        self._unsent.append(data)
        if len(self._unsent) > _MAX_UNSENT:
            self._lose(HandoffFailed("the peer reads no KV notifications"))
        elif len(self._unsent) == 1:
            self._loop.add_writer(self._open, self._writable)

    def _writable(self) -> None:
        try:
            while self._unsent:
                self._open.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(PeerError(f"the KV link broke: {error}"))
            return
        self._loop.remove_writer(self._open)

    async def receive_bare(self) -> Message:
        """As ``receive``, for messages that come without descriptors; others are closed."""
        message, descriptors = await self.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    async def receive(self) -> tuple[Message, list[int]]:
        """The next message, and the descriptors that came with it: they are the caller's.

        Raises HandoffFailed for anything that is no message, PeerError at the end of the stream.
        """
        arrived = asyncio.Event()
        try:
            self._loop.add_reader(self._open, arrived.set)
            try:
                await arrived.wait()
            finally:
                if not self.closed:
                    self._loop.remove_reader(self._open)
            data, descriptors, flags, _ = socket.recv_fds(
                self._open, MAX_BYTES + 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise PeerError(f"the KV link broke: {error}") from error
        try:
            if flags & socket.MSG_CTRUNC:
                raise HandoffFailed("a descriptor did not fit in this process")
            return self._decode(data), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def listen(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """From here on, call these as messages come and when no more can come."""
        self._on_message, self._on_lost = on_message, on_lost
        self._loop.add_reader(self._open, self._readable)

    def rest(self, seconds: float) -> None:
        """Take no messages for so long, or until ``wake``: they gather meanwhile."""
        if self._socket is not None and self._resting is None:
            self._loop.remove_reader(self._socket)
            self._resting = self._loop.call_later(seconds, self.wake)

    def wake(self) -> None:
        """End the rest, if there is one."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
            if self._socket is not None:
                self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """The peer reads the end of the stream. Nothing is called any more."""
        self.wake()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._unsent.clear()
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if self._socket is None or self._on_message is None:
                return
            try:
                self._on_message(self._decode(self._socket.recv(MAX_BYTES + 1)))
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # what the peer said before it closed can still be read
            except OSError as error:
                self._lose(PeerError(f"the KV link broke: {error}"))
            except PeerError as error:
                self._lose(error)

    def _decode(self, data: bytes) -> Message:
        if not data:
            raise PeerError("the peer closed the KV link")
        message = decode(self._received, data)
        self._received += 1
        return message

    def _lose(self, why: PeerError) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            if isinstance(why, HandoffFailed):
                self.send(Broken(why.message))
            # Not at once: whoever is sending need not reckon with it.
            self._loop.call_soon(on_lost, why)
        self.close()
