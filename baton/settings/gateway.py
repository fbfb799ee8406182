"""What gateways and relays are told: what clients see, and which workers there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from baton.deadlines import Deadlines
from baton.flags import Placeholder
from baton.http_limits import BodyLimits, HeadLimits
from baton.membership.source import Source
from baton.settings.process import (
    Address,
    GrammarSettings,
    Host,
    Port,
    ProcessSettings,
    Seconds,
    TlsSettings,
    Tokens,
    TracingSettings,
    split,
)
from baton.tls.names import Party

Addresses = Annotated[list[Address], BeforeValidator(split), Placeholder("HOST:PORT,...")]
Hosts = Annotated[list[str], BeforeValidator(split), Placeholder("HOST,...")]
Origins = Annotated[list[str], BeforeValidator(split), Placeholder("ORIGIN,...")]

CacheScope = Literal["key", "global"]
ToolFormatName = Literal["auto", "hermes", "llama3"]
ReasoningFormatName = Literal["auto", "none", "qwen3", "deepseek"]
PlacementName = Literal["least-queued", "prefix", "two-choices", "affinity", "score"]


def _weights(text: str) -> dict[str, float]:
    """``cache=1,load=2,transfer=0.5``. Raises ValueError naming what is wrong."""
    parts = [part.partition("=") for part in text.split(",")]
    if sorted(name for name, _, _ in parts) != ["cache", "load", "transfer"]:
        raise ValueError(f"{text!r} must name cache, load and transfer once each")
    found = dict[str, float]()
    for name, _, value in parts:
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}, but must be a number") from None
        if not 0 <= found[name] < math.inf:
            raise ValueError(f"{name} is {value}, but must be finite and at least 0")
    return found


class HealthSettings(ProcessSettings):
    """When a worker is out."""

    section: ClassVar[str] = "health of workers"

    stall_timeout: Seconds = Field(
        30.0,
        description="seconds without an engine step after which a worker with work to do is out; "
        "longer than any step",
    )


class HttpSettings(ProcessSettings):
    """How much connections may take up before they have asked for anything."""

    section: ClassVar[str] = "HTTP"

    max_connections: int = Field(
        16_384,
        ge=1,
        description="open HTTP connections of a port, each a stream at most; more are refused with "
        "503 and closed",
    )
    head_timeout: Seconds = Field(
        10.0, description="seconds to receive an HTTP request line and header"
    )
    max_head_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        32_768, ge=1024, description="longest HTTP request line and header, bytes"
    )
    max_header_fields: int = Field(100, ge=10, description="most fields of an HTTP header")
    allowed_hosts: Hosts = Field(
        default_factory=list,
        description="names in a Host header that are answered, beside addresses and names without "
        "a dot; * for all. If unset all are, but for those of ports on 127.0.0.1 that need no key: "
        "web pages cannot get at these by a name of theirs",
    )
    write_timeout: Seconds = Field(
        30.0,
        description="seconds for which a client may take nothing of a stream that it is sent; "
        "twice as long of any other answer",
    )

    @property
    def head_limits(self) -> HeadLimits:
        return HeadLimits(
            connections=self.max_connections,
            seconds=self.head_timeout,
            bytes=self.max_head_bytes,
            fields=self.max_header_fields,
            unread=2 * self.write_timeout,
        )


class AccessSettings(ProcessSettings):
    """Who may ask a gateway."""

    section: ClassVar[str] = "access"

    api_keys: Path | None = Field(
        None,
        description="file of API keys and their limits, made by `baton keys new`, read again when "
        "it changes; without one everybody may ask",
    )
    cache_scope: CacheScope = Field(
        "key",
        description="who shares cached prompts: requests under one API key's name, or all; sharing "
        "tells each of what others have asked",
    )
    cors_origin: Origins = Field(
        default_factory=list,
        description="web pages that may ask from a browser, such as https://chat.example; * for "
        "all, none if unset",
    )


class OutputSettings(ProcessSettings):
    """How a model writes what is more than an answer."""

    section: ClassVar[str] = "output of the model"

    tool_format: ToolFormatName = Field(
        "auto",
        description="how the model writes tool calls: hermes (Qwen too) as <tool_call> and JSON, "
        "llama3 as JSON; auto: as its chat template has them",
    )
    reasoning_format: ReasoningFormatName = Field(
        "auto",
        description="how it reasons before it answers: qwen3 between <think> and </think>, "
        "deepseek up to </think>, none; auto: as its chat template has it",
    )


class RepeatSettings(ProcessSettings):
    """What is kept of answers to requests with an Idempotency-Key."""

    section: ClassVar[str] = "repeated requests"

    idempotency_seconds: Seconds = Field(
        600.0, description="seconds that an answer is kept for who sends its Idempotency-Key again"
    )
    idempotency_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        64 * 2**20, ge=1, description="of all answers kept, bytes; the oldest go first"
    )
    idempotency_answers: int = Field(1000, ge=1, description="answers kept for each API key")
    idempotency_grace: Seconds = Field(
        10.0,
        description="seconds that such an answer is generated on after its client has gone, for "
        "when it comes back",
    )


class FrontSettings(
    OutputSettings,
    GrammarSettings,
    AccessSettings,
    HttpSettings,
    RepeatSettings,
    HealthSettings,
    TracingSettings,
):
    """What clients see of a fleet: addresses, limits, deadlines."""

    section: ClassVar[str] = "gateway"

    host: Host = Field("127.0.0.1", description="address that the API listens on")
    port: Port = Field(8000, description="HTTP port of the API; 0 picks a free one")
    admin_host: Host = Field(
        "127.0.0.1", description="address of --admin-port, where nobody needs a key"
    )
    admin_port: Port = Field(8001, description="HTTP port of /cluster and /metrics; 0 likewise")
    rpc_host: Host = Field(
        "127.0.0.1",
        description="address of --rpc-port: who reaches it may be a worker, unless there is TLS",
    )
    rpc_port: Port = Field(
        8002, description="gRPC port where workers join and `baton workers` asks; 0 likewise"
    )
    placement: PlacementName = Field(
        "least-queued",
        description="which workers take a request: those with the fewest prompt tokens waiting "
        "(and most room); prefix: those less what they cache of the prompt; two-choices: the "
        "better of two at random; affinity: always the same for a session; score: by "
        "--placement-weights",
    )
    placement_weights: Annotated[str, Placeholder("NAME=X,...")] = Field(
        "cache=1,load=1,transfer=1",
        description="--placement score takes the workers with the least of load less cache plus "
        "transfer, in seconds each, times these",
    )
    max_queue_tokens: Tokens = Field(
        1_000_000, description="prompt tokens that may wait for their first token"
    )
    max_queue_requests: int = Field(
        4096, ge=1, description="requests that may wait for their first token"
    )
    worker_grace: Annotated[float, Placeholder("SECONDS")] = Field(
        5.0,
        ge=0,
        description="seconds that new requests wait for workers that were there a moment ago; "
        "without any for longer they are refused at once",
    )
    max_body_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        4 * 2**20, ge=1, description="longest HTTP body, bytes"
    )
    max_bodies_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        2**30,
        ge=1,
        description="HTTP bodies of all requests under way, bytes; those that would take more are "
        "refused with 503",
    )
    body_timeout: Seconds = Field(30.0, description="seconds to receive an HTTP body")
    retry_initial: Seconds = Field(0.05, description="seconds before the second attempt")
    retry_max: Seconds = Field(1.0, description="longest pause between attempts, seconds")
    retry_budget: Seconds = Field(30.0, description="seconds without a token before giving up")
    queue_timeout: Seconds = Field(30.0, description="deadline: waiting for a place, seconds")
    prefill_timeout: Seconds = Field(120.0, description="deadline: computing the prompt, seconds")
    transfer_timeout: Seconds = Field(60.0, description="deadline: KV hand-off, seconds")
    first_token_timeout: Seconds = Field(180.0, description="deadline: first token, seconds")
    inter_token_timeout: Seconds = Field(60.0, description="deadline: between tokens, seconds")
    total_timeout: Seconds = Field(math.inf, description="deadline: whole request, seconds")
    auto_roles: bool = Field(
        False,
        description="have workers that can take either role change it when prompts queue on one "
        "side while the other has room",
    )
    live: Literal["auto", "off"] = Field(
        "auto",
        description="GET /live tells what happens, without prompts and text: on the admin port "
        "and, where no API keys are needed, on the public one",
    )
    role_hold: Seconds = Field(
        30.0, description="seconds from one change of roles to the next, with --auto-roles"
    )

    @property
    def body_limits(self) -> BodyLimits:
        return BodyLimits(
            bytes=self.max_body_bytes,
            seconds=self.body_timeout,
            bytes_of_all=self.max_bodies_bytes,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Of --placement score. Raises ValueError."""
        return _weights(self.placement_weights)

    @model_validator(mode="after")
    def _weights_are_numbers(self) -> Self:
        try:
            _weights(self.placement_weights)
        except ValueError as error:
            raise ValueError(f"--placement-weights: {error}") from None
        return self

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(
            queue=self.queue_timeout,
            prefill=self.prefill_timeout,
            transfer=self.transfer_timeout,
            first_token=self.first_token_timeout,
            inter_token=self.inter_token_timeout,
            total=self.total_timeout,
        )


class FleetSettings(HealthSettings, TlsSettings):
    """Which workers there are."""

    section: ClassVar[str] = "fleet"

    membership: Annotated[str, Placeholder("SOURCE")] = Field(
        "static",
        description="where workers are found: static (--prefill and --decode), embedded (they "
        "--join), dns:NAME:PORT,... (each of a name's addresses), etcd:HOST:PORT,..., or "
        "gateway:HOST:PORT,... (as one of these gateways has them)",
    )
    prefill: Addresses = Field(
        default_factory=list, description="prefill workers, with --membership static"
    )
    decode: Addresses = Field(
        default_factory=list, description="decode workers, likewise; at least one is required"
    )
    dns_interval: Seconds = Field(
        5.0, description="seconds between lookups, with --membership dns:..."
    )
    exit_with_parent: bool = Field(
        False, description="stop when the process that started this one ends"
    )

    @property
    def source(self) -> Source:
        return Source.parse(self.membership)

    @model_validator(mode="after")
    def _some_worker(self) -> Self:
        try:
            kind = self.source.kind
        except ValueError as error:
            raise ValueError(f"--membership: {error}") from None
        if kind != "static" and (self.prefill or self.decode):
            raise ValueError(f"--prefill and --decode say nothing with --membership {kind}")
        if kind == "static" and not self.decode:
            raise ValueError(
                "--decode names no worker: give --decode HOST:PORT,..., or say with --membership "
                "where workers are found"
            )
        return self


class GatewaySettings(FrontSettings, FleetSettings):
    """The gateway: OpenAI's HTTP API in front of prefill and decode workers."""

    party: ClassVar[Party] = Party.GATEWAY


class RelaySettings(FleetSettings, HttpSettings):
    """The relay: carries Prefill calls and KV between workers that cannot reach one another.

    It forwards only between the workers of its --membership; decode workers find it by their
    --relay.
    """

    section: ClassVar[str] = "relay"
    party: ClassVar[Party] = Party.RELAY

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8100, description="gRPC port; 0 picks a free one")
    admin_host: Host = Field("127.0.0.1", description="address of --admin-port")
    admin_port: Port = Field(8101, description="HTTP port of /cluster and /metrics; 0 likewise")
    max_calls: int = Field(128, ge=1, description="Prefill calls at once; more are refused")
    max_reads: int = Field(
        128, ge=1, description="KV streams at once, each of up to 5 MiB in memory; more are refused"
    )

    @model_validator(mode="after")
    def _some_prefill(self) -> RelaySettings:
        kind = self.source.kind
        if kind == "embedded":
            raise ValueError("--membership embedded is for gateways; a relay asks one: gateway:...")
        if kind == "static" and not self.prefill:
            raise ValueError(
                "--prefill names no worker: give --prefill HOST:PORT,..., or say with --membership "
                "where workers are found"
            )
        return self
