"""Who may ask: the file of API keys, followed while it changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from baton.errors import InvalidApiKey
from baton.keys import ApiKey, KeyLine
from baton.settings import CacheScope
from gateway.quota import Quota

log = structlog.get_logger(__name__)

#: Seconds between looks at the file.
_FOLLOW_INTERVAL = 1.0
#: Compared with where no key has the id given, so that this takes as long.
_NOBODY = "0" * 64


class KeyFileError(ValueError):
    """The file cannot be used; says which line, and why. Never quotes it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. Those of one name share a quota and, if scoped, a prefix cache."""

    name: str
    quota: Quota
    cache_salt: bytes = b""


def read(path: Path) -> list[KeyLine]:
    """The lines of a key file: JSON objects; empty ones and those with a # first are skipped.

    Raises KeyFileError.
    """
    file = f"--api-keys {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise KeyFileError(f"{file}: {why}") from None
    lines: dict[str, KeyLine] = {}
    named: dict[str, KeyLine] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        try:
            line = KeyLine.model_validate_json(raw)
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{part}: " for part in mistake["loc"])
            raise KeyFileError(f"{file}, line {number}: {where}{mistake['msg']}") from None
        if line.id in lines:
            raise KeyFileError(f"{file}, line {number}: id {line.id} is there twice")
        if named.setdefault(line.name, line).limits != line.limits:
            raise KeyFileError(f"{file}, line {number}: {line.name} has other limits above")
        lines[line.id] = line
    if not lines:
        raise KeyFileError(f"{file}: it has no key; `baton keys new NAME` makes one, and its line")
    return list(lines.values())


class Keys:
    """The keys that are let in now."""

    def __init__(
        self, lines: Iterable[KeyLine], scope: CacheScope, clock: Callable[[], float]
    ) -> None:
        self._scope = scope
        self._clock = clock
        self._lines: dict[str, KeyLine] = {}
        self._callers: dict[str, Caller] = {}
        self.replace(lines)

    def replace(self, lines: Iterable[KeyLine]) -> None:
        """Let in these from now on. A name that stays keeps what it has used of its quota."""
        self._lines = {line.id: line for line in lines}
        limits = {line.name: line.limits for line in self._lines.values()}
        for name in self._callers.keys() - limits.keys():
            del self._callers[name]
        for name, allowed in limits.items():
            if (caller := self._callers.get(name)) is not None:
                caller.quota.change(allowed)
            else:
                quota = Quota(allowed, self._clock)
                self._callers[name] = Caller(name, quota, self._salt(name))

    def caller(self, authorization: str) -> Caller:
        """Whose header ``Authorization: Bearer KEY`` this is.

        Takes as long for an unknown key as for a known one with another secret. Raises
        InvalidApiKey, which does not say which it was.
        """
        scheme, _, text = authorization.partition(" ")
        key = ApiKey.parse(text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise InvalidApiKey("an API key is needed, as the header 'Authorization: Bearer KEY'")
        line = self._lines.get(key.id)
        known = _NOBODY if line is None else line.hash
        if not hmac.compare_digest(key.hash, known) or line is None:
            raise InvalidApiKey("the API key is not known here")
        return self._callers[line.name]

    def _salt(self, name: str) -> bytes:
        """Equal on all gateways, and after a restart."""
        if self._scope == "global":
            return b""
        return hashlib.blake2b(name.encode(), digest_size=16, person=b"baton cache").digest()


async def follow(path: Path, keys: Keys) -> None:
    """Take in the file whenever it has changed. One that cannot be used changes nothing."""
    seen = _stamp(path)
    while True:
        await asyncio.sleep(_FOLLOW_INTERVAL)
        if (stamp := _stamp(path)) == seen:
            continue
        seen = stamp
        try:
            keys.replace(lines := await asyncio.to_thread(read, path))
        except KeyFileError as error:
            log.error("API keys not read; those known stay", reason=str(error))
        else:
            log.info("API keys read", keys=len(lines))


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one after every change; empty while there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
