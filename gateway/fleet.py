"""The workers as this gateway sees them: what each last reported, and what was placed since."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from baton import wire
from baton.errors import IncompatiblePeer
from baton.identity import CompatibilityClass, Identity, Role
from baton.v1 import worker_pb2
from gateway.breaker import Breaker
from gateway.sense import require_sense

#: Seconds after which a placement shows in the worker's own reports: one trip from gateway over
#: decode to prefill worker. Until then it is counted on top of them.
SETTLING = 0.1


class Health(Enum):
    """How a worker stands. Only HEALTHY and, failing that, SUSPECT ones get work."""

    CONNECTING = "connecting"  #: no report yet
    HEALTHY = "healthy"
    SUSPECT = "suspect"  #: one beat missed
    OUT = "out"  #: silent, the connection broke, or its engine makes no progress
    REFUSED = "refused"  #: speaks another protocol version, or is not a worker


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
    #: KV blocks that prompts to be handed over may take; None: whatever is free or cached.
    prefill_room: int | None = None
    cache_hit_tokens: int = 0  #: since start: of prompts, found in its prefix cache
    prompt_tokens: int = 0  #: since start: of prompts, computed
    generated_tokens: int = 0  #: since start: drawn


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


@dataclass(frozen=True, slots=True)
class Links:
    """How fast KV came to a decode worker, in payload bytes per second."""

    measured: Mapping[str, float]  #: by prefill instance
    mean: float  #: of these; 0 without any

    @classmethod
    def of(cls, pairings: Iterable[KvPairing]) -> Links:
        measured = {p.instance_id: p.bytes_per_s for p in pairings if p.bytes_per_s}
        return cls(measured, sum(measured.values()) / max(1, len(measured)))

    def bytes_per_s(self, instance_id: str) -> float:
        """From one prefill instance: as from the others where it is not measured."""
        return self.measured.get(instance_id, self.mean)


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
    failing: bool = False  #: its engine's steps keep failing
    possible_roles: frozenset[Role] = frozenset()  #: what it may be told to do
    roles_since: float = 0.0  #: seconds since its roles were changed, or it started
    controller: str = ""  #: gateway that may change its roles unasked
    max_running: int = 0  #: sequences that its batch can hold; 0 when unknown
    prefill_decisions: tuple[PrefillDecision, ...] = ()
    kv_pairings: tuple[KvPairing, ...] = ()
    tls: bool = False  #: on its gRPC connections
    refused: Mapping[str, int] = field(default_factory=dict)  #: by its server, by reason
    links: Links = Links({}, 0.0)  #: of these pairings

    @property
    def compatibility(self) -> CompatibilityClass:
        assert self.identity.compatibility is not None, "from_wire refuses a status without one"
        return self.identity.compatibility

    @property
    def standing(self) -> tuple[object, ...]:
        """What a roster sorts workers by; the rest is load."""
        return (
            self.identity,
            self.roles,
            self.local_prefill,
            self.model,
            self.max_model_len,
            self.draining,
        )

    @classmethod
    def from_wire(cls, status: worker_pb2.WorkerStatus) -> Report:
        """Raises IncompatiblePeer for another protocol version, without a class, or for what
        cannot be true."""
        identity = wire.identity_from_wire(status.identity)
        if identity.compatibility is None:
            raise IncompatiblePeer("the status names no compatibility class: not a worker")
        load = status.load
        require_sense(status)
        pairings = tuple(_pairing(p) for p in status.kv_pairings)
        return cls(
            identity=identity,
            roles=wire.roles_from_wire(status.roles),
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
                prefill_room=load.prefill_room if load.HasField("prefill_room") else None,
                cache_hit_tokens=load.cache_hit_tokens,
                prompt_tokens=load.prompt_tokens,
                generated_tokens=load.generated_tokens,
            ),
            transports=tuple(
                Transport(name=t.name, version=t.version, unavailable=t.unavailable)
                for t in status.transports
            ),
            draining=status.draining,
            failing=status.failing,
            possible_roles=wire.roles_from_wire(status.possible_roles),
            roles_since=status.roles_since_ms / 1e3,
            controller=status.controller,
            max_running=status.max_running,
            prefill_decisions=tuple(
                PrefillDecision(local=d.local, reason=d.reason, count=d.count)
                for d in status.prefill_decisions
            ),
            kv_pairings=pairings,
            links=Links.of(pairings),
            tls=status.tls,
            refused={refusal.reason: refusal.count for refusal in status.refused},
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


def kv_blocks(tokens: int, block_size: int, choices: int = 0) -> int:
    """KV blocks that so many tokens take, and a block to go on in for each choice: one of them has
    the last, partial block of the tokens."""
    return tokens // block_size + choices if choices else -(-tokens // block_size)


@dataclass(slots=True, eq=False)
class Placed:
    """What a placement takes up on its worker, less what was given back before a report."""

    at: float  #: loop time
    tokens: int
    blocks: int
    shown: bool = False  #: reports have it in them, and the worker counts it no more


@dataclass(slots=True, eq=False)
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
    breaker: Breaker = field(default_factory=Breaker)
    #: Prompt tokens waiting for compute there, placements not yet reported included.
    queued_tokens: int = field(init=False)
    #: KV blocks a new sequence could take, less what was placed and is not yet reported, and
    #: what is kept for replays.
    room_blocks: int = field(init=False)
    #: KV tokens of sequences that live there, likewise.
    live_tokens: int = field(init=False)
    #: KV blocks that a prompt to be handed over could take.
    prefill_room: int = field(init=False)
    _kept_blocks: int = 0
    _unseen_tokens: int = 0
    _unseen_blocks: int = 0
    _unseen: deque[Placed] = field(default_factory=deque)
    #: Of placements, shown or not: what was given back since the last report.
    _returned: list[tuple[Placed, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count()

    @property
    def instance_id(self) -> str:
        return self.report.identity.instance_id

    @property
    def decodes(self) -> bool:
        return Role.DECODE in self.report.roles

    @property
    def all_blocks(self) -> int:
        """KV blocks of its pool, whatever their state."""
        load = self.report.load
        return load.blocks_free + load.blocks_cached + load.blocks_owned + load.blocks_quarantined

    @property
    def begins_in(self) -> float:
        """Seconds until it would be through with what is there and begin with a new prompt, by its
        own measure; 0 when it has not measured yet, or nothing is there.

        The step that runs has to end first, whose prompts may be counted no more.
        """
        load = self.report.load
        queued = self.queued_tokens * load.prefill_token
        return queued + load.last_step if queued else 0.0

    def blocks(self, tokens: int, choices: int = 0) -> int:
        """See ``kv_blocks``."""
        return kv_blocks(tokens, self.report.compatibility.block_size, choices)

    def has_room(self, blocks: int, role: Role = Role.DECODE, *, replay: bool = False) -> bool:
        """Whether it may get sequences of so many KV blocks now; a replay may have what is kept."""
        room = self.prefill_room if role is Role.PREFILL else self.room_blocks
        if replay:
            room += self._kept_blocks
        return room >= blocks and not self.full and not self.breaker.refuses

    def reported(self, report: Report, now: float) -> None:
        """Take in a new report. What was placed long enough before is in it; what was given back
        is no more, for a worker was through with that before we heard of it.

        Where that is not so (we gave up, it does not know yet) the worker tells again as soon as it
        does, while what is subtracted for too long stays until then, and makes it look idle.
        """
        if report.roles != self.report.roles:
            self.breaker.succeeded()  # what it refused in its old role says nothing of the new
        self.report = report
        self.breaker.tick(now)
        self.full = False
        for placed, tokens, blocks in self._returned:
            if placed.shown:
                self._unseen_tokens += tokens
                self._unseen_blocks += blocks
            else:  # neither counts any more
                placed.tokens -= tokens
                placed.blocks -= blocks
        self._returned.clear()
        while self._unseen and self._unseen[0].at < now - SETTLING:
            placed = self._unseen.popleft()
            placed.shown = True
            self._unseen_tokens -= placed.tokens
            self._unseen_blocks -= placed.blocks
        self._count()

    def placed(self, tokens: int, blocks: int, now: float) -> Placed:
        """Count a placement until reports show it."""
        placed = Placed(now, tokens, blocks)
        self._unseen.append(placed)
        self._unseen_tokens += tokens
        self._unseen_blocks += blocks
        self._count()
        if blocks > 0 and self.doubted:
            self.full = True
        return placed

    def returned(self, placed: Placed, tokens: int, blocks: int) -> None:
        """So much of it is over: do not count that until the next report."""
        self._returned.append((placed, tokens, blocks))
        self._unseen_tokens -= tokens
        self._unseen_blocks -= blocks
        self._count()
        if blocks > 0:
            self.full = False

    def keep(self, blocks: int) -> None:
        """Leave so many blocks to a replay that will come; negative numbers give them back."""
        self._kept_blocks += blocks
        self._count()

    def _count(self) -> None:
        """Kept, not computed when asked: a placement asks many workers, and changes two."""
        load = self.report.load
        self.queued_tokens = max(0, load.queued_tokens + self._unseen_tokens)
        taken = self._unseen_blocks + self._kept_blocks
        self.room_blocks = load.blocks_free + load.blocks_cached - taken
        live_blocks = max(0, load.blocks_owned + self._unseen_blocks)
        self.live_tokens = live_blocks * self.report.compatibility.block_size
        self.prefill_room = self.room_blocks
        if load.prefill_room is not None:
            self.prefill_room = min(self.room_blocks, load.prefill_room - self._unseen_blocks)

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
