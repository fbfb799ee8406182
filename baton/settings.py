"""Every setting of every process, defined once: flag, environment variable and YAML key.

``--max-queue-tokens 5``, ``BATON_MAX_QUEUE_TOKENS=5`` and ``max_queue_tokens: 5`` in the file
named by ``--config`` (or ``BATON_CONFIG``) are the same setting; the earlier wins. A default
stands here and nowhere else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from baton.deadlines import Deadlines
from baton.flags import Placeholder
from baton.liveness import Beat
from baton.membership.source import Source

#: Connections that may share one hand-off over grpc.
MAX_STRIPES = 16

Dtype = Literal["float32", "bfloat16", "float16"]
AttentionChoice = Literal["auto", "flashinfer", "varlen", "kernel", "torch"]
Quantize = Literal["int8", "int4"]
PrefillOrder = Literal["fcfs", "srpt"]
WorkerRole = Literal["prefill", "decode", "both"]


def _split(value: object) -> object:
    """Accept ``a:1,b:2`` where a list is meant, from the command line and the environment."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _host_port(value: str) -> str:
    """Raises ValueError unless ``value`` is host:port, an IPv6 host in brackets."""
    host, _, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare is host):
        raise ValueError("must be HOST:PORT, with an IPv6 host in brackets")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError("must be HOST:PORT, with a port from 1 to 65535")
    return value


Address = Annotated[str, AfterValidator(_host_port)]
Addresses = Annotated[list[str], BeforeValidator(_split), Placeholder("HOST:PORT,...")]
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:\d+)?)$"), Placeholder("DEVICE")]
Devices = Annotated[list[Device], BeforeValidator(_split), Placeholder("DEVICE,...")]
KvTransports = Annotated[
    list[Literal["shm", "grpc", "nixl", "relay"]], BeforeValidator(_split), Placeholder("NAME,...")
]
KvChecksums = Literal["auto", "on", "off"]
Port = Annotated[int, Field(ge=0, le=65535), Placeholder("PORT")]
Seconds = Annotated[float, Field(gt=0), Placeholder("SECONDS")]
Tokens = Annotated[int, Field(ge=1), Placeholder("TOKENS")]


class ProcessSettings(BaseSettings):
    """What every Baton process has."""

    section: ClassVar[str] = "every process"

    model_config = SettingsConfigDict(
        env_prefix="BATON_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        enable_decoding=False,
        extra="forbid",
    )

    config: Path | None = Field(None, description="YAML file with any of these settings")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe lines logged; prompts appear at debug only"
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="for people or for machines"
    )
    heartbeat_interval: Seconds = Field(1.0, description="seconds between signs of life")
    heartbeats_missed: int = Field(3, ge=1, description="silent beats after which a peer is dead")

    @property
    def beat(self) -> Beat:
        return Beat(self.heartbeat_interval, self.heartbeats_missed)


class ModelSettings(ProcessSettings):
    """What gateway and workers must agree on."""

    section: ClassVar[str] = "model"

    model: Annotated[str, Placeholder("DIR|ID")] = Field(
        description="Hugging Face directory or hub id (required)"
    )
    served_model_name: Annotated[str | None, Placeholder("NAME")] = Field(
        None, description="name in /v1/models; the last part of --model if unset"
    )

    @property
    def served_name(self) -> str:
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]


class ComputeSettings(ModelSettings):
    """How a worker computes, and in how much memory; equal in all workers of a fleet."""

    section: ClassVar[str] = "compute"

    dtype: Dtype = Field("float32", description="type of weights and activations")
    attention: AttentionChoice = Field(
        "auto",
        description="on a CPU, by our own C kernels or by torch, and with it norms, rope and "
        "activation; auto: the kernels where a C compiler is found and the CPU has AVX2. On CUDA, "
        "by flashinfer (where installed), torch's varlen (with FlashAttention 3 or 4), our Triton "
        "kernel or plain torch; auto: the first",
    )
    cuda_graphs: bool = Field(
        True, description="on CUDA, capture decode steps of up to --max-running sequences at start"
    )
    quantize: Quantize | None = Field(
        None,
        description="round the weights of linears to 8 bits, or 4 (cpu only), at load; "
        "activations and KV stay as they are",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads per worker; a fair share of the cores if unset"
    )
    block_size: Annotated[int, Placeholder("TOKENS")] = Field(
        16, ge=1, le=256, description="tokens per KV block"
    )
    num_blocks: Annotated[int | None, Placeholder("BLOCKS")] = Field(
        None, ge=1, description="KV blocks per worker; from --kv-memory-gib if unset"
    )
    kv_memory_gib: Annotated[float, Placeholder("GIB")] = Field(
        1.0, gt=0, description="memory for KV per worker, GiB, where --num-blocks is unset"
    )
    max_model_len: Annotated[int | None, Placeholder("TOKENS")] = Field(
        None, ge=2, description="longest sequence, prompt and answer; the model's if unset"
    )
    max_step_tokens: Tokens = Field(512, description="tokens computed per engine step")
    chunk_tokens: Tokens = Field(512, description="tokens of one prompt per engine step")
    max_running: int = Field(64, ge=1, description="sequences in the running batch")
    prefill_order: PrefillOrder = Field(
        "fcfs",
        description="which waiting prompts are computed first, among equal priorities: those that "
        "came first, or those with the fewest tokens left, ageing",
    )
    prefix_cache: bool = Field(True, description="reuse KV of equal prefixes")
    deterministic: bool = Field(
        False, description="the same tokens under any batch, chunk and cache hit; slower"
    )
    mock: bool = Field(False, description="a cost model in place of the network; needs no torch")
    mock_step_ms: Annotated[float, Placeholder("MS")] = Field(
        2.0, ge=0, description="mock: milliseconds per engine step"
    )
    mock_prefill_us: Annotated[float, Placeholder("US")] = Field(
        50.0, ge=0, description="mock: microseconds per prompt token"
    )
    mock_decode_us: Annotated[float, Placeholder("US")] = Field(
        100.0, ge=0, description="mock: microseconds per decoding sequence"
    )


class HandoffSettings(ModelSettings):
    """How KV gets from prefill to decode workers."""

    section: ClassVar[str] = "KV hand-off"

    kv_transports: KvTransports = Field(
        ["shm", "grpc", "relay"],
        min_length=1,
        description="ways to move KV, best first: shm within a host, grpc anywhere, nixl where it "
        "is installed, relay where all else fails; a pair uses the first that both can",
    )
    shm_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        16 * 2**20,
        ge=2**12,
        le=2**30,
        description="shared memory per pair of prefill and decode worker, bytes",
    )
    kv_lag_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        32 * 2**20,
        ge=0,
        description="a prompt of which more KV than this is computed but not taken yet lets "
        "others be computed first, bytes",
    )
    kv_trace: Path | None = Field(
        None, description="append each hand-off's course, piece by piece, to this file"
    )

    @model_validator(mode="after")
    def _transports_ordered(self) -> Self:
        named, given = self.kv_transports, ",".join(self.kv_transports)
        if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
            raise ValueError(
                f"--kv-transports {given}: {twice[0]} is named {named.count(twice[0])} times; "
                "each is named once, best first"
            )
        if "relay" in named[:-1]:
            raise ValueError(f"--kv-transports {given}: relay is the last resort, so it comes last")
        return self


class ReadingSettings(ModelSettings):
    """How a decode worker reads KV. The prefill side does as it is asked."""

    section: ClassVar[str] = "reading of KV"

    kv_checksums: KvChecksums = Field(
        "auto",
        description="a CRC-32C with every KV block; auto: from each prefill worker whose hand-offs "
        "prove so slow that it costs under 2 % of them",
    )
    kv_stripes: int = Field(
        1,
        ge=1,
        le=MAX_STRIPES,
        description="connections that share a hand-off over grpc, by layers",
    )
    grpc_window_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        4 * 2**20,
        ge=2**16,
        le=2**30,
        description="KV that may arrive over grpc ahead of being written, bytes per stream",
    )


class WorkerSettings(ComputeSettings, HandoffSettings):
    """What prefill and decode workers share."""

    section: ClassVar[str] = "worker"

    host: Annotated[str, Placeholder("HOST")] = Field(
        "127.0.0.1", description="address to listen on"
    )
    port: Port = Field(0, description="gRPC port; 0 picks a free one")
    advertise: Annotated[str | None, Placeholder("HOST:PORT")] = Field(
        None, description="address told to peers; --host and --port if unset"
    )
    join: Annotated[str | None, Placeholder("HOST:PORT,...")] = Field(
        None,
        description="gRPC ports of the gateways to register with, all of them; or "
        "etcd:HOST:PORT,... for those that look there",
    )
    device: Device = Field("cpu", description="cpu or cuda:N")
    drain_grace: Annotated[float, Placeholder("SECONDS")] = Field(
        5.0, ge=0, description="seconds that running sequences get to finish when told to stop"
    )
    exit_with_parent: bool = Field(
        False, description="stop when the process that started this one ends"
    )

    @property
    def posts(self) -> Source | None:
        """Where to register, if anywhere."""
        return None if self.join is None else Source.parse_posts(self.join)

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        try:
            posts = self.posts
        except ValueError as error:
            raise ValueError(f"--join: {error}") from None
        if posts is not None and self.advertise is None and self.host in {"0.0.0.0", "::"}:
            raise ValueError(
                f"--join with --host {self.host} needs --advertise: that is no address to be "
                "reached at"
            )
        return self

    @property
    def prefill_share(self) -> float | None:
        """How much longer prefill may make a step that decodes; None: as long as it gets."""
        return None

    def prefill_blocks(self, num_blocks: int) -> int | None:
        """KV blocks, of so many, for prompts to be handed over while it has both roles; None
        where it never has."""
        return None


class PrefillSettings(WorkerSettings):
    """A prefill worker: turns prompts into KV and hands it over, layer by layer."""


class LocalPrefillSettings(ModelSettings):
    """How far a decode worker may compute prompts itself."""

    section: ClassVar[str] = "local prefill"

    local_prefill_share: float = Field(
        0.3,
        gt=0,
        description="a step that decodes may last longer by this share of it for the sake of "
        "prefill; with --local-prefill only where given, as colocated servers have no such bound",
    )
    local_prefill_queue: Annotated[int, Placeholder("TOKENS")] = Field(
        256,
        ge=0,
        description="prompt tokens that may wait on a decode worker for being computed sooner "
        "than on a prefill worker; 0: none ever is",
    )


class RoleSettings(ModelSettings):
    """How a worker changes its roles (`baton role`), and does both."""

    section: ClassVar[str] = "roles"

    role_grace: Annotated[float, Placeholder("SECONDS")] = Field(
        0.5,
        ge=0,
        description="seconds that running sequences get to finish when a worker is told to decode "
        "no more; then they go on elsewhere",
    )
    prefill_memory: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the KV blocks that prompts for other workers may take on a worker of "
        "both roles; what decodes there must fit the rest",
    )


class DecodeSettings(WorkerSettings, ReadingSettings, LocalPrefillSettings, RoleSettings):
    """A decode worker: generates tokens from KV that it is handed, or computes itself.

    It can be told to prefill for others instead, or as well: when it starts, and at any time.
    """

    section: ClassVar[str] = "decode worker"

    role: WorkerRole = Field("decode", description="what it does until `baton role` says otherwise")

    local_prefill: bool = Field(False, description="prefill every prompt here: a colocated worker")
    session_queue: Tokens = Field(
        65_536, description="unsent tokens per session before it is taken for dead"
    )
    relay: Annotated[Address | None, Placeholder("HOST:PORT")] = Field(
        None,
        description="where `python -m gateway.relay` listens, for prefill workers that cannot be "
        "reached; --kv-transports relay sends all through it",
    )

    @model_validator(mode="after")
    def _relay_known(self) -> DecodeSettings:
        if self.kv_transports == ["relay"] and self.relay is None:
            raise ValueError("--kv-transports relay needs --relay HOST:PORT")
        return self

    @property
    def prefill_share(self) -> float | None:
        colocated = self.local_prefill and "local_prefill_share" not in self.model_fields_set
        return None if colocated else self.local_prefill_share

    def prefill_blocks(self, num_blocks: int) -> int | None:
        return min(num_blocks - 1, max(1, round(self.prefill_memory * num_blocks)))


class HealthSettings(ProcessSettings):
    """When a worker is out."""

    section: ClassVar[str] = "health of workers"

    stall_timeout: Seconds = Field(
        30.0,
        description="seconds without an engine step after which a worker with work to do is out; "
        "longer than any step",
    )


class FrontSettings(ModelSettings, HealthSettings):
    """What clients see of a fleet: addresses, limits, deadlines."""

    section: ClassVar[str] = "gateway"

    host: Annotated[str, Placeholder("HOST")] = Field(
        "127.0.0.1", description="address to listen on"
    )
    port: Port = Field(8000, description="HTTP port of the API; 0 picks a free one")
    admin_port: Port = Field(8001, description="HTTP port of /cluster and /metrics; 0 likewise")
    rpc_port: Port = Field(
        8002, description="gRPC port where workers join and `baton workers` asks; 0 likewise"
    )
    max_queue_tokens: Tokens = Field(1_000_000, description="prompt tokens admitted at once")
    max_body_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        8 * 2**20, ge=1, description="longest HTTP body, bytes"
    )
    body_timeout: Seconds = Field(30.0, description="seconds to receive an HTTP body")
    write_timeout: Seconds = Field(30.0, description="seconds a client may stall its stream")
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
    role_hold: Seconds = Field(
        30.0, description="seconds from one change of roles to the next, with --auto-roles"
    )

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


class FleetSettings(HealthSettings):
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
            raise ValueError("--decode names no worker; at least one is needed")
        return self


class GatewaySettings(FrontSettings, FleetSettings):
    """The gateway: OpenAI's HTTP API in front of prefill and decode workers."""


class RelaySettings(FleetSettings):
    """The relay: carries Prefill calls and KV between workers that cannot reach one another.

    It forwards only between the workers of its --membership; decode workers find it by their
    --relay.
    """

    section: ClassVar[str] = "relay"

    host: Annotated[str, Placeholder("HOST")] = Field(
        "127.0.0.1", description="address to listen on"
    )
    port: Port = Field(8100, description="gRPC port; 0 picks a free one")
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
            raise ValueError("--prefill names no worker; at least one is needed")
        return self


class UpSettings(
    ComputeSettings,
    HandoffSettings,
    ReadingSettings,
    LocalPrefillSettings,
    RoleSettings,
    FrontSettings,
):
    """Start a gateway and its workers on this machine, and stop them together.

    Without --prefill, --decode and --colocated: one prefill and one decode worker. The options
    below the first section go to the processes that know them.
    """

    section: ClassVar[str] = "what to start"

    prefill: int | None = Field(None, ge=0, description="prefill workers")
    decode: int | None = Field(None, ge=0, description="decode workers")
    colocated: int = Field(0, ge=0, description="workers that prefill and decode in one process")
    device: Devices = Field(
        default_factory=lambda: ["cpu"],
        min_length=1,
        description="cpu (if unset), or cuda:0,cuda:1,...; dealt round robin to the workers",
    )
    restart: bool = Field(True, description="start a process again that dies after it was ready")
    grace: Seconds = Field(10.0, description="seconds to stop before a process is killed")

    @property
    def counts(self) -> tuple[int, int, int]:
        """Prefill, decode and colocated workers to start."""
        if self.colocated and self.prefill is None and self.decode is None:
            return 0, 0, self.colocated
        prefill = 1 if self.prefill is None else self.prefill
        decode = 1 if self.decode is None else self.decode
        return prefill, decode, self.colocated

    @model_validator(mode="after")
    def _no_relay_needed(self) -> UpSettings:
        if self.kv_transports == ["relay"]:
            raise ValueError(
                "--kv-transports relay: `baton up` starts no relay, as its workers reach one "
                "another; to try one, start each process by itself (README.md)"
            )
        return self

    @model_validator(mode="after")
    def _some_of_each(self) -> UpSettings:
        prefill, decode, colocated = self.counts
        if decode + colocated == 0:
            raise ValueError("--decode 0 leaves no worker to generate tokens")
        if prefill + colocated == 0:
            raise ValueError("--prefill 0 leaves no worker to compute prompts; use --colocated N")
        return self
