"""What every wire type of the HTTP API has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Strict: nothing is converted, and a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
