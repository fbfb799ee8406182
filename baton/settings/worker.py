"""What workers are told: how to compute, how KV moves, where to listen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from baton.flags import Placeholder
from baton.identity import ROLES
from baton.membership.source import Source
from baton.settings.process import (
    Address,
    GrammarSettings,
    Host,
    ModelSettings,
    Port,
    TlsSettings,
    Tokens,
    TracingSettings,
    split,
)
from baton.tls.names import Party

#: Connections that may share one hand-off over grpc.
MAX_STRIPES = 16

Dtype = Literal["float32", "bfloat16", "float16"]
AttentionChoice = Literal["auto", "flashinfer", "varlen", "kernel", "torch"]
Quantize = Literal["int8", "int4"]
PrefillOrder = Literal["fcfs", "srpt"]
WorkerRole = Literal["prefill", "decode", "both"]


def _device(value: str) -> str:
    """Raises ValueError for what is no device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value, re.ASCII):
        raise ValueError("must be cpu, or cuda:N for the N-th GPU, counted from 0")
    return value


Device = Annotated[str, AfterValidator(_device), Placeholder("DEVICE")]
KvTransports = Annotated[
    list[Literal["shm", "grpc", "nixl", "relay"]], BeforeValidator(split), Placeholder("NAME,...")
]
KvChecksums = Literal["auto", "on", "off"]


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
        "srpt",
        description="which waiting prompts are computed first, among equal priorities: those that "
        "came first, or those with the fewest tokens left, until long ones have waited long",
    )
    prefix_cache: bool = Field(True, description="reuse KV of equal prefixes")
    deterministic: bool = Field(
        False, description="the same tokens under any batch, chunk and cache hit; slower"
    )
    mock: bool = Field(
        False, description="a cost model in place of the neural network; needs no torch"
    )
    mock_step_ms: Annotated[float, Placeholder("MS")] = Field(
        2.0, ge=0, description="mock: milliseconds per engine step"
    )
    mock_prefill_us: Annotated[float, Placeholder("US")] = Field(
        50.0, ge=0, description="mock: microseconds per prompt token"
    )
    mock_decode_us: Annotated[float, Placeholder("US")] = Field(
        100.0, ge=0, description="mock: microseconds per decoding sequence"
    )
    mock_costs: Annotated[Path | None, Placeholder("FILE")] = Field(
        None, description="mock: all of these as measured, from `python -m bench.fit`"
    )

    @model_validator(mode="after")
    def _costs_once(self) -> Self:
        if self.mock_costs is not None:
            if not self.mock:
                raise ValueError("--mock-costs needs --mock: only the mock is told what it costs")
            others = {"mock_step_ms", "mock_prefill_us", "mock_decode_us"} & self.model_fields_set
            if others:
                flag = "--" + min(others).replace("_", "-")
                raise ValueError(f"--mock-costs says what {flag} would: give one of them")
        return self


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
    kv_allow_unencrypted: bool = Field(
        False,
        description="with TLS, let transports that cannot encrypt (nixl) be used all the same",
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


class WorkerSettings(
    ComputeSettings, HandoffSettings, GrammarSettings, TlsSettings, TracingSettings
):
    """What prefill and decode workers share."""

    section: ClassVar[str] = "worker"

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(0, description="gRPC port; 0 picks a free one")
    metrics_port: Annotated[Port | None, Placeholder("PORT")] = Field(
        None, description="HTTP port of /metrics, on --host; 0 picks a free one, unset: none"
    )
    advertise: Annotated[Address | None, Placeholder("HOST:PORT")] = Field(
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
    def unencrypted_kv(self) -> str:
        """Why transports that cannot encrypt are not used; empty when they may be."""
        if self.tls_files is None or self.kv_allow_unencrypted:
            return ""
        return "it cannot encrypt, and there is TLS (see --kv-allow-unencrypted)"

    @property
    def posts(self) -> Source | None:
        """Where to register, if anywhere."""
        return None if self.join is None else Source.parse_posts(self.join)

    @model_validator(mode="after")
    def _some_transport(self) -> Self:
        if self.unencrypted_kv and self.kv_transports == ["nixl"]:
            raise ValueError(f"--kv-transports nixl: {self.unencrypted_kv}")
        return self

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
    def itl_target_s(self) -> float:
        """How long a step that decodes may last for the sake of prompts. Here nothing decodes."""
        return math.inf

    def prefill_blocks(self, num_blocks: int) -> int | None:
        """KV blocks, of so many, for prompts to be handed over while it has both roles; None
        where it never has."""
        return None


class PrefillSettings(WorkerSettings):
    """A prefill worker: turns prompts into KV and hands it over, layer by layer."""

    party: ClassVar[Party] = Party.PREFILL


class LocalPrefillSettings(ModelSettings):
    """How far a worker that decodes may compute prompts itself."""

    section: ClassVar[str] = "local prefill"

    itl_target_ms: Annotated[float, Placeholder("MS")] = Field(
        60.0,  # three quarters of the 80 ms per token that plans ask for by default: steps vary
        gt=0,
        description="milliseconds that a step that decodes may last for the sake of prompts "
        "computed beside it: a time between tokens that is short enough; inf: as long as they take",
    )
    local_prefill_queue: Annotated[int | None, Placeholder("TOKENS")] = Field(
        None,
        ge=0,
        description="prompt tokens that may wait on a decode worker for being computed sooner "
        "than on a prefill worker; 0: none ever is; unset: as many as are sooner there",
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
    party: ClassVar[Party] = Party.DECODE

    role: WorkerRole = Field("decode", description="what it does until `baton role` says otherwise")

    local_prefill: bool = Field(False, description="prefill every prompt here: a colocated worker")
    session_queue: Tokens = Field(
        65_536,
        description="unsent tokens per session before it is taken for dead; at least 32 per stream",
    )
    relay: Annotated[Address | None, Placeholder("HOST:PORT")] = Field(
        None,
        description="where `python -m gateway.relay` listens, for prefill workers that cannot be "
        "reached; --kv-transports relay sends all through it",
    )

    @property
    def parties(self) -> Sequence[Party]:
        """As it begins: the roles that it may be told to take later are those that are named."""
        return sorted((Party(role.value) for role in ROLES[self.role]), key=lambda p: p.value)

    @model_validator(mode="after")
    def _relay_known(self) -> DecodeSettings:
        if self.kv_transports == ["relay"] and self.relay is None:
            raise ValueError("--kv-transports relay needs --relay HOST:PORT")
        return self

    @property
    def itl_target_s(self) -> float:
        return self.itl_target_ms / 1e3

    def prefill_blocks(self, num_blocks: int) -> int | None:
        return min(num_blocks - 1, max(1, round(self.prefill_memory * num_blocks)))
