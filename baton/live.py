"""What the live feed says: one frozen dataclass per event. ``docs/live.md`` says what each means.

The gateway renders them (``rendered``), whoever reads the feed in Python takes them in again
(``parse``). A reader passes over events and fields that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound="Event | Blocks | Request | Verdict")

#: How many digits of an instance id name a worker.
NAME_LENGTH = 8


def short(instance_id: str) -> str:
    """How the feed names an instance."""
    return instance_id[:NAME_LENGTH]


# -- gateway and workers --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that the feed says."""

    name: ClassVar[str]  #: the event's type on the wire


@dataclass(frozen=True, kw_only=True)
class Gateway(Event):
    """The gateway as a whole, every second."""

    name = "gateway"

    at: float
    instance: str
    model: str
    placement: str
    queued_tokens: int
    waiting: int
    open: int
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A worker's KV blocks by state."""

    free: int = 0
    cached: int = 0
    owned: int = 0
    quarantined: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a worker stands out from the others of its side."""

    kind: str
    times: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Worker(Event):
    """A worker as it is now."""

    name = "worker"

    at: float
    id: str | None
    address: str
    state: str
    reason: str
    roles: list[str] = field(default_factory=list)
    possible_roles: list[str] = field(default_factory=list)
    local_prefill: bool = False
    breaker: str = "closed"
    draining: bool = False
    model: str = ""
    queued_tokens: int = 0
    running: int = 0
    waiting: int = 0
    max_running: int = 0
    blocks: Blocks = Blocks()
    cache_hit_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    last_step_ms: float = 0.0
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerGone(Event):
    """A worker has left."""

    name = "worker_gone"

    at: float
    id: str | None
    address: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """Where an open request stands, in a snapshot."""

    request: str
    arrived: float
    prompt_tokens: int
    max_tokens: int
    choices: int
    phase: str
    attempt: int | None
    decode: str | None
    prefill: str | None
    tokens: int
    ttft_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot(Event):
    """What is now; the first event of a connection."""

    name = "snapshot"

    at: float
    gateway: Gateway
    workers: list[Worker]
    requests: list[Request]


@dataclass(frozen=True, kw_only=True)
class Lost(Event):
    """The listener was too slow: so many events are missing here."""

    name = "lost"

    events: int


# -- requests -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Queued(Event):
    """A request was taken on."""

    name = "queued"

    request: str
    at: float
    prompt_tokens: int
    max_tokens: int
    choices: int
    priority: int


@dataclass(frozen=True, kw_only=True)
class Placed(Event):
    """An attempt begins."""

    name = "placed"

    request: str
    at: float
    attempt: int
    choices: list[int]
    decode: str
    prefill: str | None
    policy: str
    tokens: int
    cached: int
    waited_ms: float


@dataclass(frozen=True, kw_only=True)
class Prefill(Event):
    """How much of the prompt is computed."""

    name = "prefill"

    request: str
    at: float
    attempt: int
    worker: str
    computed: int
    cached: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Kv(Event):
    """How much of the KV has arrived."""

    name = "kv"

    request: str
    at: float
    attempt: int
    bytes: int
    total_bytes: int
    layers: int
    total_layers: int
    transport: str


@dataclass(frozen=True, kw_only=True)
class FirstToken(Event):
    """The first token of a choice."""

    name = "first_token"

    request: str
    at: float
    attempt: int
    choice: int
    ttft_ms: float


@dataclass(frozen=True, kw_only=True)
class Decode(Event):
    """How far a choice is."""

    name = "decode"

    request: str
    at: float
    attempt: int
    choice: int
    tokens: int
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """An attempt at a choice is over."""

    name = "attempt_ended"

    request: str
    at: float
    attempt: int
    choice: int
    reason: str
    message: str | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """A request is over."""

    name = "ended"

    request: str
    at: float
    status: int
    reason: str
    tokens: int
    cached_tokens: int | None
    attempts: int
    ttft_ms: float | None
    itl_p50_ms: float | None
    itl_max_ms: float | None
    total_ms: float


EVENTS: Mapping[str, type[Event]] = {
    kind.name: kind
    for kind in (
        Snapshot,
        Gateway,
        Worker,
        WorkerGone,
        Lost,
        Queued,
        Placed,
        Prefill,
        Kv,
        FirstToken,
        Decode,
        AttemptEnded,
        Ended,
    )
}

# -- the wire -------------------------------------------------------------------------------------

_JSON = json.JSONEncoder(separators=(",", ":"), default=vars)
#: Fields that hold other messages.
_PARTS: Mapping[str, type[Event | Blocks | Request | Verdict]] = {
    "gateway": Gateway,
    "workers": Worker,
    "requests": Request,
    "blocks": Blocks,
    "verdict": Verdict,
}


def rendered(event: Event) -> str:
    """The event's data, one line of JSON."""
    return _JSON.encode(event)


def parse(name: str, data: str) -> Event | None:
    """The event of that type; None for a type of a later version.

    Raises ValueError for what is not JSON, or lacks a field.
    """
    kind = EVENTS.get(name)
    return None if kind is None else _made(kind, json.loads(data))


def _made(kind: type[E], given: Mapping[str, Any]) -> E:
    known: dict[str, Any] = {}
    for one in fields(kind):
        if one.name in given:
            known[one.name] = _part(one.name, given[one.name])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{kind.__name__} has no {one.name!r}")
    return kind(**known)


def _part(name: str, value: Any) -> Any:
    kind = _PARTS.get(name)
    if kind is None or value is None:
        return value
    if isinstance(value, list):
        return [_made(kind, one) for one in value]
    return _made(kind, value)
