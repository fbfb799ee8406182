"""Every setting of every process, defined once: flag, environment variable and YAML key.

``--max-queue-tokens 5``, ``BATON_MAX_QUEUE_TOKENS=5`` and ``max_queue_tokens: 5`` in the file
named by ``--config`` (or ``BATON_CONFIG``) are the same setting; the earlier wins. A default
stands here and nowhere else.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from baton.deadlines import Deadlines
from baton.liveness import Beat

Dtype = Literal["float32", "bfloat16", "float16"]


def _split(value: object) -> object:
    """Accept ``a:1,b:2`` where a list is meant, from the command line and the environment."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Addresses = Annotated[list[str], BeforeValidator(_split)]


class ProcessSettings(BaseSettings):
    """What every Baton process has."""

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
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_format: Literal["console", "json"] = Field("console", description="log format")
    heartbeat_interval: float = Field(1.0, gt=0, description="seconds between signs of life")
    heartbeats_missed: int = Field(3, ge=1, description="silent beats after which a peer is dead")

    @property
    def beat(self) -> Beat:
        return Beat(self.heartbeat_interval, self.heartbeats_missed)


class ModelSettings(ProcessSettings):
    """What gateway and workers must agree on."""

    model: str = Field(description="Hugging Face directory or hub id")
    served_model_name: str | None = Field(
        None, description="name in /v1/models; the last part of --model by default"
    )

    @property
    def served_name(self) -> str:
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]


class WorkerSettings(ModelSettings):
    """What prefill and decode workers share."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    advertise: str | None = Field(
        None, description="host:port told to peers; --host:--port if unset"
    )
    device: str = Field("cpu", description="cpu or cuda:N")
    dtype: Dtype = Field("float32", description="type of weights and activations")
    threads: int | None = Field(None, ge=1, description="compute threads; all cores if unset")
    block_size: int = Field(16, ge=1, le=256, description="tokens per KV block")
    num_blocks: int | None = Field(
        None, ge=1, description="KV blocks; from --kv-memory-gib if unset"
    )
    kv_memory_gib: float = Field(
        1.0, gt=0, description="memory for KV, GiB, where --num-blocks is unset"
    )
    max_model_len: int | None = Field(
        None, ge=2, description="longest sequence; the model's if unset"
    )
    max_step_tokens: int = Field(512, ge=1, description="tokens computed per engine step")
    chunk_tokens: int = Field(512, ge=1, description="tokens of one prompt per engine step")
    max_running: int = Field(64, ge=1, description="sequences in the running batch")
    prefix_cache: bool = Field(True, description="reuse KV of equal prefixes")
    deterministic: bool = Field(
        False, description="same tokens under any batch, chunk and cache hit"
    )
    mock: bool = Field(False, description="a cost model in place of the network; needs no torch")
    mock_step_ms: float = Field(2.0, ge=0, description="mock: milliseconds per engine step")
    mock_prefill_us: float = Field(50.0, ge=0, description="mock: microseconds per prompt token")
    mock_decode_us: float = Field(
        100.0, ge=0, description="mock: microseconds per decoding sequence"
    )
    exit_with_parent: bool = Field(
        False, description="stop when the process that started this one ends"
    )


class PrefillSettings(WorkerSettings):
    """Settings of ``python -m prefill_worker``."""


class DecodeSettings(WorkerSettings):
    """Settings of ``python -m decode_worker``."""

    local_prefill: bool = Field(False, description="prefill every prompt here: a colocated worker")
    session_queue: int = Field(
        65_536, ge=1, description="unsent tokens per session before it is taken for dead"
    )


class GatewaySettings(ModelSettings):
    """Settings of ``python -m gateway``."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port")
    admin_port: int = Field(8001, ge=0, le=65535, description="HTTP port of /cluster and /metrics")
    prefill: Addresses = Field(default_factory=list, description="prefill workers, host:port,...")
    decode: Addresses = Field(default_factory=list, description="decode workers, host:port,...")
    max_queue_tokens: int = Field(1_000_000, ge=1, description="prompt tokens admitted at once")
    max_body_bytes: int = Field(8 * 2**20, ge=1, description="longest HTTP body")
    body_timeout: float = Field(30.0, gt=0, description="seconds to receive an HTTP body")
    write_timeout: float = Field(30.0, gt=0, description="seconds a client may stall its stream")
    retry_initial: float = Field(0.05, gt=0, description="seconds before the second attempt")
    retry_max: float = Field(1.0, gt=0, description="longest pause between attempts, seconds")
    retry_budget: float = Field(30.0, gt=0, description="seconds without a token before giving up")
    queue_timeout: float = Field(30.0, gt=0, description="deadline: waiting for a place, seconds")
    prefill_timeout: float = Field(
        120.0, gt=0, description="deadline: computing the prompt, seconds"
    )
    transfer_timeout: float = Field(60.0, gt=0, description="deadline: KV hand-off, seconds")
    first_token_timeout: float = Field(180.0, gt=0, description="deadline: first token, seconds")
    inter_token_timeout: float = Field(60.0, gt=0, description="deadline: between tokens, seconds")
    total_timeout: float = Field(math.inf, gt=0, description="deadline: whole request, seconds")
    exit_with_parent: bool = Field(
        False, description="stop when the process that started this one ends"
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

    @model_validator(mode="after")
    def _some_worker(self) -> GatewaySettings:
        if not self.decode:
            raise ValueError("--decode names no worker; at least one is needed")
        return self


S = TypeVar("S", bound=ProcessSettings)


def _explain(mistake: ErrorDetails) -> str:
    """One line: the flag, what is wrong, and what was given."""
    message = mistake["msg"].removeprefix("Value error, ")
    if not mistake["loc"]:
        return message
    flag = "--" + ".".join(str(part) for part in mistake["loc"]).replace("_", "-")
    given = "" if mistake["type"] == "missing" else f" (given: {mistake['input']!r})"
    return f"{flag}: {message}{given}"


def load(cls: type[S], argv: Sequence[str], prog: str) -> S:
    """Settings from command line, environment and YAML file, in that order.

    Exits with status 2 and one line per mistake, naming the flag, when a value is not accepted.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", default=os.environ.get("BATON_CONFIG"))
    path = early.parse_known_args(argv)[0].config
    if path is not None and not Path(path).is_file():
        raise SystemExit(f"{prog}: --config {path}: no such file")

    class Configured(cls):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(cli_prog_name=prog)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, path)

    Configured.__doc__ = cls.__doc__
    try:
        return CliApp.run(Configured, cli_args=list(argv))
    except ValidationError as error:
        for mistake in error.errors():
            sys.stderr.write(f"{prog}: {_explain(mistake)}\n")
    except SettingsError as error:
        sys.stderr.write(f"{prog}: {error}\n")
    raise SystemExit(2)
