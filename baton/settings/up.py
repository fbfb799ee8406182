"""What ``baton up`` is told."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from baton.flags import Placeholder
from baton.settings.gateway import FrontSettings
from baton.settings.process import Port, Seconds, split
from baton.settings.worker import (
    ComputeSettings,
    Device,
    HandoffSettings,
    LocalPrefillSettings,
    ReadingSettings,
    RoleSettings,
)

Devices = Annotated[list[Device], BeforeValidator(split), Placeholder("DEVICE,...")]


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
    tls: bool = Field(
        False,
        description="TLS between the processes, by an authority that ends with them; needs openssl",
    )
    metrics_port: Annotated[Port | None, Placeholder("PORT")] = Field(
        None,
        description="HTTP port of the first worker's /metrics, on this machine; the others have "
        "the next ones; unset: none",
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
