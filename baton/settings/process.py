"""What every process is told, and what gateway and workers must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from baton.flags import Placeholder
from baton.grammar_limits import GrammarLimits
from baton.liveness import Beat
from baton.tls.names import Party

Host = Annotated[str, Placeholder("HOST")]
Port = Annotated[int, Field(ge=0, le=65535), Placeholder("PORT")]
Seconds = Annotated[float, Field(gt=0), Placeholder("SECONDS")]
Tokens = Annotated[int, Field(ge=1), Placeholder("TOKENS")]


def split(value: object) -> object:
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


def _http_url(value: str) -> str:
    """Raises ValueError for another scheme."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value


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


class TracingSettings(ProcessSettings):
    """Where traces go."""

    section: ClassVar[str] = "traces"

    otlp_endpoint: Annotated[
        Annotated[str, AfterValidator(_http_url)] | None, Placeholder("URL")
    ] = Field(
        None,
        description="send OpenTelemetry traces to this OTLP/gRPC collector, such as "
        "http://localhost:4317 (https for TLS); by OTEL_EXPORTER_OTLP_ENDPOINT if unset, and the "
        "other OTEL_* variables; needs the extra otel",
    )


class TlsSettings(ProcessSettings):
    """How processes prove to one another who they are."""

    section: ClassVar[str] = "TLS between processes"
    party: ClassVar[Party] = Party.ADMIN  #: what the certificate must name

    tls_cert: Path | None = Field(
        None,
        description="certificate of this process for all gRPC connections, PEM; replaced, it is "
        "used without a restart (see `baton certs`); without it the network is trusted",
    )
    tls_key: Path | None = Field(None, description="its private key, PEM, without a password")
    tls_ca: Path | None = Field(
        None, description="authorities whose certificates are accepted, PEM"
    )

    @property
    def parties(self) -> Sequence[Party]:
        """All that the certificate must name."""
        return (self.party,)

    @property
    def tls_files(self) -> tuple[Path, Path, Path] | None:
        """Certificate, key, authorities; None: no TLS."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return self.tls_cert, self.tls_key, self.tls_ca

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [self.tls_cert, self.tls_key, self.tls_ca]
        if any(given) and not all(given):
            raise ValueError("--tls-cert, --tls-key and --tls-ca go together: give all three")
        return self


class ModelSettings(ProcessSettings):
    """What gateway and workers must agree on."""

    section: ClassVar[str] = "model"

    model: Annotated[str, Placeholder("DIR|ID")] = Field(
        description="a Hugging Face directory, such as model/demo/checkpoint, or hub id (required)"
    )
    served_model_name: Annotated[str | None, Placeholder("NAME")] = Field(
        None, description="name in /v1/models; the last part of --model if unset"
    )

    @property
    def served_name(self) -> str:
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]


class GrammarSettings(ModelSettings):
    """What a grammar that holds an answer (a JSON schema, tools, ...) may take up."""

    section: ClassVar[str] = "constrained output"

    max_grammar_bytes: Annotated[int, Placeholder("BYTES")] = Field(
        65_536, ge=64, description="longest grammar: JSON schema, regular expression, tools, bytes"
    )
    max_grammar_states: Annotated[int, Placeholder("STATES")] = Field(
        20_000, ge=100, description="lexer states of a grammar, up to 2 kB each; more are refused"
    )
    grammar_cache: int = Field(
        16, ge=1, description="compiled grammars kept, for requests that bring the same"
    )

    @property
    def grammar_limits(self) -> GrammarLimits:
        return GrammarLimits(
            bytes=self.max_grammar_bytes, states=self.max_grammar_states, kept=self.grammar_cache
        )
