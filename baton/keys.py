"""API keys: how one is made, and what of it is kept.

A key is ``sk-ID-SECRET``. The file has the id and a BLAKE2b-256 of the secret, salted with the id.
A slow hash would protect secrets that can be guessed; these are 256 random bits.

The file has a line of JSON for each key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from baton.generation import MAX_PRIORITY

_ID_BYTES = 8
_SECRET_BYTES = 32
_PERSON = b"baton api key"
_SHAPE = re.compile(r"sk-([0-9a-f]{16})-([\x21-\x7e]{1,200})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as a client sends it."""

    id: str  #: 16 hexadecimal digits, no secret
    secret: str

    @classmethod
    def new(cls) -> ApiKey:
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> ApiKey | None:
        """None for what cannot be one."""
        found = _SHAPE.fullmatch(text)
        return None if found is None else cls(found[1], found[2])

    @property
    def text(self) -> str:
        return f"sk-{self.id}-{self.secret}"

    @property
    def hash(self) -> str:
        """What the file has of it: 64 hexadecimal digits."""
        salt = bytes.fromhex(self.id)
        hashed = hashlib.blake2b(self.secret.encode(), digest_size=32, salt=salt, person=_PERSON)
        return hashed.hexdigest()

    def __repr__(self) -> str:
        return f"ApiKey({self.id!r}, ...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """None is no limit."""

    concurrent: int | None = None  #: requests at once
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None  #: of prompts
    best_priority: int | None = None  #: the smallest that a request may name


_PerMinute = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]


class KeyLine(BaseModel):
    """A line of the file. Two lines may have one name: a key and its successor."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    concurrent: Annotated[int | None, Field(ge=1)] = None
    requests_per_minute: _PerMinute = None
    tokens_per_minute: _PerMinute = None
    best_priority: Annotated[int | None, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = None

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(
            concurrent=self.concurrent,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            best_priority=self.best_priority,
        )
