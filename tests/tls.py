"""A fleet's certificates for a test, by an authority that can be replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from baton.tls.authority import Authority
from baton.tls.files import Files
from baton.tls.links import Links
from baton.tls.names import Party

#: Marks tests that make certificates.
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no program openssl")


class Fleet:
    """Each process's files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._authority = Authority(directory)
        self._issued: dict[str, frozenset[Party]] = {}

    def settings(self, id: str, *parties: Party) -> dict[str, Path]:
        """Settings for a process with a certificate of its own. It names these roles, and those
        that it named before."""
        named = self._issued[id] = self._issued.get(id, frozenset()).union(parties)
        made = self._authority.issue(id, named)
        return {"tls_cert": made.certificate, "tls_key": made.key, "tls_ca": made.authorities}

    def links(self, id: str, party: Party) -> Links:
        """Those of such a process."""
        return Links(Files(*self.settings(id, party).values(), party))

    def gateway(self) -> Links:
        return self.links("g0", Party.GATEWAY)

    def renew(self) -> None:
        """Replace the authority and every certificate, one file after the other, as is done where
        nothing may stop: for a while both authorities are trusted."""
        trusted = self.directory / "ca.pem"
        beside = self.directory / f"after {trusted.stat().st_mtime_ns}"
        after = Authority(beside)
        new = (beside / "ca.pem").read_bytes()
        _replace(trusted, trusted.read_bytes() + new)
        for id, parties in self._issued.items():
            made = after.issue(id, parties)
            _replace(self.directory / made.key.name, made.key.read_bytes())
            _replace(self.directory / made.certificate.name, made.certificate.read_bytes())
        _replace(trusted, new)
        self._authority = after


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def credentials(id: str, directory: Path, ca: Path) -> grpc.ChannelCredentials:
    """Of whoever has these files."""
    certificate, key = (directory / f"{id}.{end}" for end in ("pem", "key"))
    return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())
