"""What every process is told, and what gateway and workers must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from baton.flags import Placeholder
from baton.liveness import Beat

Port = Annotated[int, Field(ge=0, le=65535), Placeholder("PORT")]
Seconds = Annotated[float, Field(gt=0), Placeholder("SECONDS")]
Tokens = Annotated[int, Field(ge=1), Placeholder("TOKENS")]


def split(value: object) -> object:
    """Accept ``a:1,b:2`` where a list is meant, from the command line and the environment."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


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
