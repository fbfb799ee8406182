"""The thread that owns a NIXL agent, and makes every call to it.

When it wakes up, as nothing tells it that something has happened:

    READs are under way     at once, then after pauses that double from 50 us to 1 ms; any that
                            ends, or a new one, starts over
    peers may connect       every 2 ms, as an agent answers a peer that connects only when asked to
    nothing                 every second, to let go of connections whose peer has gone

In between it sleeps on its queue, and wakes for what is put there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from baton.errors import PeerError
from baton.kv.nixl import Unusable
from baton.kv.nixl.api import CUDA, HOST, OWN, Api, Handle, NixlAgent
from baton.kv.transport import Region

_CLOSED = "the NIXL agent was closed"
_SHORTEST, _LONGEST, _ATTENTIVE, _IDLE = 50e-6, 1e-3, 2e-3, 1.0

#: Called once, with what went wrong; empty when nothing did. Words, as an exception would keep
#: frames, and so the agent, alive.
OnEnd = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Call:
    """Something else that is to be done with the agent."""

    work: Callable[[Books], None]
    ended: OnEnd


@dataclass(slots=True)
class Read:
    """One READ. Its bytes may land until ``ended`` is called."""

    peer: str
    make: Callable[[Books], Handle]
    ended: OnEnd
    handle: Handle | None = None


@dataclass(slots=True)
class Books:
    """The agent, and what is open in it."""

    api: Api
    agent: NixlAgent
    registered: list[object] = field(default_factory=list)
    pools: dict[str, Handle] = field(default_factory=dict)  #: prepared, by agent
    reads: list[Read] = field(default_factory=list)

    def register(self, address: int, nbytes: int, device: int | None) -> None:
        stretch = [(address, nbytes, device or 0, "")]
        self.registered.append(self.agent.register_memory(stretch, _kind(device)))

    def prepare(self, peer: str, pool: Region) -> None:
        """List a pool's blocks: block b of layer l is number ``l * num_blocks + b``."""
        count = pool.layers * pool.num_blocks
        rows = self.api.blocks(pool.address, pool.block_bytes, pool.device or 0, count)
        self.pools[peer] = self.agent.prep_xfer_dlist(peer, rows, _kind(pool.device))

    def connect(self, peer: str, metadata: bytes, pool: Region) -> None:
        """Raises PeerError when the metadata is another agent's."""
        name = self.agent.add_remote_agent(metadata)
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        if name != peer:
            self.agent.remove_remote_agent(name)
            raise PeerError(f"what came is of NIXL agent {name}, not of {peer}")
        self.prepare(peer, pool)

    def forget(self, peer: str) -> None:
        """No READ from it is under way."""
        if pool := self.pools.pop(peer, None):
            pool.release()
            self.agent.remove_remote_agent(peer)

    def read_blocks(self, peer: str, here: Sequence[int], there: Sequence[int]) -> Handle:
        if peer not in self.pools:
            raise PeerError(f"NIXL agent {peer} is not connected")
        return self.agent.make_prepped_xfer("READ", self.pools[OWN], here, self.pools[peer], there)

    def read_bytes(self, peer: str, here: int, there: int, nbytes: int) -> Handle:
        """Of memory beside the pools, on both sides the host's."""
        mine = self.agent.get_xfer_descs([(here, nbytes, 0)], HOST)
        theirs = self.agent.get_xfer_descs([(there, nbytes, 0)], HOST)
        return self.agent.initialize_xfer("READ", mine, theirs, peer)

    def close(self) -> None:
        """Give everything back. When it returns the agent is no more, and no byte lands."""
        for read in self.reads:
            if read.handle is not None:
                self._release(read.handle)
                read.handle = None
        for pool in self.pools.values():
            self._release(pool)
        for region in self.registered:
            with suppress(*self.api.errors):
                self.agent.deregister_memory(region)
        self.pools.clear()
        del self.agent  # the last reference: its connections break here

    def _release(self, handle: Handle) -> None:
        with suppress(*self.api.errors):  # its agent's end ends it anyway
            handle.release()


class AgentThread:
    """Starts when it is made. ``end`` it."""

    def __init__(
        self, load: Callable[[], Books], started: Callable[[bytes], None], ended: OnEnd
    ) -> None:
        """``load`` makes the agent, or raises Unusable; ``started`` gets its metadata. ``ended``
        is called last, when nothing of the agent is left."""
        self.attending = False  #: peers may connect
        self.blamed = ""  #: the peer whose READ left the agent in a state that nobody knows
        self._load = load
        self._started = started
        self._ended = ended
        self._queue: SimpleQueue[Call | Read | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="nixl", daemon=True)
        self._thread.start()

    def put(self, item: Call | Read) -> None:
        self._queue.put(item)

    def end(self) -> None:
        """After what was put before; READs under way are broken off. Never waits."""
        self._queue.put(None)

    def drain(self) -> None:
        """End what was put too late. Nothing is put any more."""
        while not self._queue.empty():
            if (item := self._queue.get()) is not None:
                item.ended(_CLOSED)

    def _run(self) -> None:
        try:
            books = self._load()
        except Unusable as error:
            self._ended(str(error))
            return
        except Exception as error:  # noqa: BLE001 - it is reported, and nobody else could
            self._ended(_words(error))
            return
        failure = ""
        try:
            self._started(books.agent.get_agent_metadata())
            self._serve(books)
        except Exception as error:  # noqa: BLE001 - as above
            failure = _words(error)
        books.close()
        for read in books.reads:
            read.ended(_CLOSED)
        self._ended(failure)

    def _serve(self, books: Books) -> None:
        """Until ``end``. Raises what leaves the agent in a state that nobody knows."""
        pause = _SHORTEST
        while True:
            try:
                item = self._queue.get(timeout=self._pause(books, pause))
            except Empty:
                pause = min(2 * pause, _LONGEST)
            else:
                if item is None:
                    return
                self._start(books, item)
                pause = _SHORTEST
            books.agent.get_new_notifs()  # lets UCX answer; none of them is ours
            if self._poll(books):
                pause = _SHORTEST

    def _pause(self, books: Books, pause: float) -> float:
        if books.reads:
            return pause
        return _ATTENTIVE if self.attending else _IDLE

    def _start(self, books: Books, item: Call | Read) -> None:
        try:
            if isinstance(item, Call):
                item.work(books)
                item.ended("")
                return
            item.handle = item.make(books)
        except PeerError as error:
            item.ended(error.message)
            return
        except books.api.errors as error:  # no byte moves for it
            item.ended(_words(error))
            return
        except Exception as error:  # a defect: whoever waits must not wait for ever
            item.ended(_words(error))
            raise
        books.reads.append(item)
        self._advance(books, item, books.agent.transfer)

    def _poll(self, books: Books) -> bool:
        """Whether any READ has ended."""
        before = len(books.reads)
        for read in list(books.reads):
            self._advance(books, read, books.agent.check_xfer_state)
        return len(books.reads) < before

    def _advance(self, books: Books, read: Read, step: Callable[[Handle], str]) -> None:
        """Take one step with a READ, and its end if it is one."""
        assert read.handle is not None, "it was made"
        failure = ""
        try:
            state = step(read.handle)
        except books.api.lost as error:  # UCX has closed the connection: no byte lands
            state, failure = "LOST", f"the connection is lost: {error}"
        except books.api.errors:
            self.blamed = read.peer
            raise
        if state == "PROC":
            return
        if state == "ERR":
            self.blamed = read.peer
            raise PeerError("a READ failed, but its connection did not")
        books.reads.remove(read)
        read.handle.release()
        read.handle = None
        read.ended(failure)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(device: int | None) -> str:
    return HOST if device is None else CUDA
