"""The workers as this gateway sees them: what each last reported, and what was placed since."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from baton import wire
from baton.errors import IncompatiblePeer
from baton.identity import CompatibilityClass, Identity
from baton.v1 import worker_pb2

#: Seconds after which a placement shows in the worker's own reports: one trip from gateway over
#: decode to prefill worker. Until then it is counted on top of them.
SETTLING = 0.1


class Role(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


class Health(Enum):
    """How a worker stands. Only HEALTHY and, failing that, SUSPECT ones get work."""

    CONNECTING = "connecting"  #: no report yet
    HEALTHY = "healthy"
    SUSPECT = "suspect"  #: one beat missed
    OUT = "out"  #: silent, or the connection broke
    REFUSED = "refused"  #: speaks another protocol version, or is not a worker


_ROLES: Mapping[int, Role] = {
    worker_pb2.ROLE_PREFILL: Role.PREFILL,
    worker_pb2.ROLE_DECODE: Role.DECODE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker has to do, as it counts it."""

    queued_tokens: int = 0  #: prompt tokens waiting for compute, less cached ones
    running: int = 0  #: sequences in the batch
    waiting: int = 0  #: sequences waiting for compute or KV
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_owned: int = 0
    blocks_quarantined: int = 0
    steps: int = 0  #: engine steps since start
    last_step: float = 0.0  #: seconds
    prefill_token: float = 0.0  #: seconds of compute per prompt token, measured; 0 when unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A way to move KV, and why it cannot be used (empty when it can)."""

    name: str
    version: int
    unavailable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillDecision:
    """How many prompts a decode worker computed itself (or not), for one reason."""

    local: bool
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPairing:
    """How KV comes to a decode worker from one prefill instance, and what has come."""

    instance_id: str = ""
    address: str = ""
    transport: str = ""
    downgrades: tuple[str, ...] = ()  #: why nothing better
    checksums: bool = False  #: every block comes with one
    stripes: int = 1  #: connections that share each hand-off
    complete: int = 0  #: hand-offs
    failed: int = 0
    bytes: int = 0  #: of payload
    bytes_per_s: float = 0.0  #: while KV was there to be read; 0 when not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's status message as a value."""

    identity: Identity
    roles: frozenset[Role]
    local_prefill: bool  #: a decode worker that prefills every prompt itself
    model: str
    max_model_len: int  #: tokens of the longest sequence it can hold
    vocab_size: int
    load: Load
    transports: tuple[Transport, ...]
    draining: bool
    prefill_decisions: tuple[PrefillDecision, ...] = ()
    kv_pairings: tuple[KvPairing, ...] = ()

    @property
    def compatibility(self) -> CompatibilityClass:
        assert self.identity.compatibility is not None, "from_wire refuses a status without one"
        return self.identity.compatibility

    @classmethod
    def from_wire(cls, status: worker_pb2.WorkerStatus) -> Report:
        """Raises IncompatiblePeer for another protocol version, or without a class."""
        identity = wire.identity_from_wire(status.identity)
        if identity.compatibility is None:
            raise IncompatiblePeer("the status names no compatibility class: not a worker")
        load = status.load
        return cls(
            identity=identity,
            roles=frozenset(_ROLES[role] for role in status.roles if role in _ROLES),
            local_prefill=status.local_prefill,
            model=status.model,
            max_model_len=status.max_model_len,
            vocab_size=status.vocab_size,
            load=Load(
                queued_tokens=load.queued_tokens,
                running=load.running,
                waiting=load.waiting,
                blocks_free=load.blocks_free,
                blocks_cached=load.blocks_cached,
                blocks_owned=load.blocks_owned,
                blocks_quarantined=load.blocks_quarantined,
                steps=load.steps,
                last_step=load.last_step_us / 1e6,
                prefill_token=load.prefill_us_per_token / 1e6,
            ),
            transports=tuple(
                Transport(name=t.name, version=t.version, unavailable=t.unavailable)
                for t in status.transports
            ),
            draining=status.draining,
            prefill_decisions=tuple(
                PrefillDecision(local=d.local, reason=d.reason, count=d.count)
                for d in status.prefill_decisions
            ),
            kv_pairings=tuple(_pairing(p) for p in status.kv_pairings),
        )


def _pairing(pairing: worker_pb2.KvPairing) -> KvPairing:
    return KvPairing(
        instance_id=pairing.instance_id,
        address=pairing.address,
        transport=pairing.transport,
        downgrades=tuple(pairing.downgrades),
        checksums=pairing.checksums,
        stripes=pairing.stripes,
        complete=pairing.complete,
        failed=pairing.failed,
        bytes=pairing.bytes,
        bytes_per_s=pairing.bytes_per_s,
    )


@dataclass(slots=True)
class Worker:
    """One instance of a worker process; a restarted one is another ``Worker``.

    Changed only by the registry (report, health) and the orchestrator (placements and what came
    of them), all on the event loop.
    """

    address: str  #: host:port
    report: Report
    health: Health = Health.HEALTHY
    #: Not tried before it reports again, something of ours leaves it, or a moment has passed.
    full: bool = False
    #: It said ``worker_full`` where its report shows room: tried with one request at a time.
    doubted: bool = False
    _unseen_tokens: int = 0
    _unseen_blocks: int = 0
    _unseen: deque[tuple[float, int, int]] = field(default_factory=deque)

    @property
    def instance_id(self) -> str:
        return self.report.identity.instance_id

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens waiting for compute there, placements not yet reported included."""
        return max(0, self.report.load.queued_tokens + self._unseen_tokens)

    @property
    def begins_in(self) -> float:
        """Seconds until it would be through with what is there and begin with a new prompt, by its
        own measure; 0 when it has not measured yet, or nothing is there.

        The step that runs has to end first, whose prompts may be counted no more.
        """
        load = self.report.load
        queued = self.queued_tokens * load.prefill_token
        return queued + load.last_step if queued else 0.0

    @property
    def room_blocks(self) -> int:
        """KV blocks a new sequence could take, less what was placed and is not yet reported."""
        load = self.report.load
        return load.blocks_free + load.blocks_cached - self._unseen_blocks

    def blocks(self, tokens: int) -> int:
        """KV blocks that a sequence of so many tokens takes here."""
        return -(-tokens // self.report.compatibility.block_size)

    def has_room(self, tokens: int) -> bool:
        return not self.full and self.room_blocks >= self.blocks(tokens)

    def reported(self, report: Report, now: float) -> None:
        """Take in a new report; what was placed long enough before it is in it."""
        self.report = report
        self.full = False
        while self._unseen and self._unseen[0][0] < now - SETTLING:
            _, tokens, blocks = self._unseen.popleft()
            self._unseen_tokens -= tokens
            self._unseen_blocks -= blocks

    def placed(self, tokens: int, blocks: int, now: float) -> None:
        """Count a placement until reports show it; negative numbers count one that has left."""
        self._unseen.append((now, tokens, blocks))
        self._unseen_tokens += tokens
        self._unseen_blocks += blocks
        if blocks < 0:
            self.full = False
        elif blocks > 0 and self.doubted:
            self.full = True

    def refused(self) -> None:
        """It answered that it is full."""
        self.full = self.doubted = True

    def try_again(self) -> None:
        """A moment has passed: its room may have come before its refusal did, and then no report
        says so. It stays in doubt."""
        self.full = False

    def accepted(self) -> None:
        """It took a request after all."""
        if self.doubted:
            self.full = self.doubted = False


class Booking:
    """What one attempt takes up on its workers, counted there until their own reports show it."""

    def __init__(self, decode: Worker, prefill: Worker | None, tokens: int, now: float) -> None:
        self._decode = decode
        self._prefill = prefill
        self._tokens = tokens
        self._blocks = decode.blocks(tokens + 1)
        self._computed = self._taken = False
        decode.placed(0, self._blocks, now)
        if prefill is not None:
            prefill.placed(tokens, self._blocks, now)
        else:
            decode.placed(tokens, 0, now)

    def started(self, now: float) -> None:
        """The first token is here: the workers took the attempt, and the prompt is computed."""
        self._count_computed(now)
        self._decode.accepted()
        if self._prefill is not None:
            self._prefill.accepted()

    def handed_over(self, now: float) -> bool:
        """A second token is here, so the decode worker has the prompt's KV, and the prefill worker
        its blocks back. Returns whether that is news."""
        if self._prefill is None or self._taken:
            return False
        self._taken = True
        self._prefill.placed(0, -self._blocks, now)
        return True

    def ended(self, now: float) -> None:
        """The attempt has left its workers; call once."""
        self._count_computed(now)
        self.handed_over(now)
        self._decode.placed(0, -self._blocks, now)

    def _count_computed(self, now: float) -> None:
        if not self._computed:
            self._computed = True
            (self._prefill or self._decode).placed(-self._tokens, 0, now)
