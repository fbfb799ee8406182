"""What a decode worker agreed on with each prefill instance, and how the hand-offs from it went.

How fast they were is measured over the whole time in which KV was there to be read; the cost rule
(decode_worker/prefill_choice.py) needs another figure, what of that time was not hidden, and
keeps that itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from baton.errors import DeadlineExceeded, IncompatiblePeer, PeerError
from baton.kv.checksums import Policy
from baton.kv.transport import Sink, Terms
from baton.metrics.hand_offs import HandOffMetrics
from baton.ratio import Ratio
from baton.v1 import kv_pb2, worker_pb2

log = structlog.get_logger(__name__)

#: Instances kept at most; the one least recently used goes first.
KEPT = 256
#: Seconds after its last hand-off that an instance is kept without a connection to it.
GONE_AFTER = 60.0


@dataclass(slots=True)
class _Pair:
    """The decode worker and one prefill instance."""

    address: str
    transport: str = ""  #: empty where the two have none in common
    downgrades: tuple[str, ...] = ()
    checksums: bool = False
    complete: int = 0
    failed: int = 0
    bytes: int = 0
    speed: Ratio = field(default_factory=Ratio)  #: bytes per second, over the present transport
    used_at: float = 0.0


class HandOff:
    """One hand-off under way, as ``Ledger.hand_off`` counts it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pair: _Pair | None = None  # until it is agreed on, and when it is counted
        self._sink: Sink | None = None

    def agreed(self, terms: Terms, sink: Sink) -> None:
        """The prefill side has accepted; what comes goes into ``sink``."""
        self._pair, self._sink = self._ledger.note(terms), sink

    def complete(self, seconds: float, tail: float) -> None:
        """All of it is here, ``seconds`` after the first of it could be read and ``tail`` after
        the first token."""
        pair, nbytes = self._count()
        if pair is not None and nbytes:
            pair.complete += 1
            self._ledger.metrics.complete(pair.transport, seconds, tail)
            if seconds > 0:
                pair.speed.add(nbytes, seconds)

    def fail(self) -> None:
        """The pair, or the network between, is to blame that it did not arrive."""
        pair, _ = self._count()
        if pair is not None:
            pair.failed += 1
            self._ledger.metrics.failed(pair.transport)

    def drop(self) -> None:
        """Nobody wants it any more."""
        self._count()

    def _count(self) -> tuple[_Pair | None, int]:
        """Book what has arrived, once; returns the pair it came from, and how many bytes."""
        pair, self._pair = self._pair, None
        if pair is None or self._sink is None:
            return None, 0
        pair.bytes += self._sink.bytes
        self._ledger.metrics.received(pair.transport, self._sink.bytes)
        return pair, self._sink.bytes


class Ledger:
    """Every prefill instance that KV was read from, while it is there. All on the event loop."""

    def __init__(
        self,
        policy: Policy,
        connected: Callable[[], Collection[str]],
        *,
        stripes: Mapping[str, int],
        metrics: HandOffMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``connected``: instances that a connection is up to; ``stripes``: connections that share
        a hand-off, of the transports where they are not one."""
        self.metrics = metrics
        self._policy = policy
        self._connected = connected
        self._stripes = stripes
        self._clock = clock
        self._pairs: dict[str, _Pair] = {}  # the least recently used first

    @contextmanager
    def hand_off(self, address: str, instance_id: str) -> Iterator[HandOff]:
        """Count the hand-off in the body, from that instance, from when it is agreed on.

        It has failed when a PeerError or the transfer's deadline ends the body before it is
        complete; anything else that does is not the pair's fault. An IncompatiblePeer is noted
        as well: the two cannot agree.
        """
        under_way = HandOff(self)
        try:
            yield under_way
        except IncompatiblePeer as error:
            none = kv_pb2.TransportChoice(downgrades=[error.message])
            self.note(Terms(address, instance_id, b"", none)).failed += 1
            self.metrics.failed("")
            raise
        except PeerError:
            under_way.fail()
            raise
        except DeadlineExceeded as error:
            if error.phase == "transfer":
                under_way.fail()
            raise
        finally:
            under_way.drop()

    def wants_checksums(self, instance_id: str) -> bool:
        """Whether the next hand-off from an instance is to come with checksums."""
        pair = self._pairs.get(instance_id)
        return self._policy.wanted(pair.speed.value if pair else 0.0)

    def note(self, terms: Terms) -> _Pair:
        """What a pair has agreed on; said in the log at its first use, and when it changes."""
        choice = terms.choice
        pair = self._pairs.pop(terms.instance_id, None)
        if pair is None:
            self._forget(lambda _, other: other.address == terms.address)  # it was restarted
            pair = _Pair(terms.address)
        self._pairs[terms.instance_id] = pair
        if len(self._pairs) > KEPT:
            del self._pairs[next(iter(self._pairs))]
        downgrades = tuple(choice.downgrades)
        if pair.transport != choice.name:
            pair.speed = Ratio()
        elif pair.checksums != choice.checksums:
            self._log_switch(terms, pair)
        if (pair.transport, pair.downgrades) != (choice.name, downgrades):
            _log(terms)
        pair.transport, pair.downgrades = choice.name, downgrades
        pair.checksums, pair.used_at = choice.checksums, self._clock()
        return pair

    def pairings(self) -> list[worker_pb2.KvPairing]:
        """Every pair for the worker's status; instances that are gone fall out."""
        idle_since = self._clock() - GONE_AFTER
        if any(pair.used_at < idle_since for pair in self._pairs.values()):
            connected = self._connected()
            self._forget(lambda name, pair: pair.used_at < idle_since and name not in connected)
        return [
            worker_pb2.KvPairing(
                instance_id=instance_id,
                address=pair.address,
                transport=pair.transport,
                downgrades=pair.downgrades,
                checksums=pair.checksums,
                stripes=self._stripes.get(pair.transport, 1),
                complete=pair.complete,
                failed=pair.failed,
                bytes=pair.bytes,
                bytes_per_s=pair.speed.value,
            )
            for instance_id, pair in self._pairs.items()
        ]

    def _log_switch(self, terms: Terms, pair: _Pair) -> None:
        log.info(
            "kv checksums",
            on=terms.choice.checksums,
            peer=terms.address,
            instance=terms.instance_id,
            mb_per_s=round(pair.speed.value / 1e6),
            on_below=round(self._policy.auto_limit / 1e6),
        )

    def _forget(self, gone: Callable[[str, _Pair], bool]) -> None:
        self._pairs = {name: pair for name, pair in self._pairs.items() if not gone(name, pair)}


def _log(terms: Terms) -> None:
    say = log.warning if terms.choice.downgrades else log.info
    say(
        "kv transport",
        name=terms.choice.name or "none",
        peer=terms.address,
        instance=terms.instance_id,
        passed_over=list(terms.choice.downgrades),
        checksums=terms.choice.checksums,
    )
