"""The process's certificate and the authorities it trusts, read anew when their files change."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import structlog

from baton.tls.names import Name, Party, names_in

log = structlog.get_logger(__name__)


class BadCertificate(ValueError):
    """Files that no connection could be made with; says which and why."""


@dataclass(frozen=True, slots=True)
class Material:
    """What connections are made with: PEM each, checked to go together."""

    certificate: bytes
    key: bytes
    authorities: bytes
    name: Name  #: of the certificate, in the role of this process
    parties: frozenset[Party]  #: all roles that it names
    expires: str  #: as in the certificate
    generation: int  #: 1, 2, ...: it differs when the files have changed


class Files:
    """Three PEM files. They may be replaced while the process runs, one by one: until all that
    was read goes together, what was read before goes on."""

    def __init__(self, certificate: Path, key: Path, authorities: Path, *parties: Party) -> None:
        """``parties``: what the certificate must name; without any, one role of whatever kind.
        Raises BadCertificate, OSError."""
        self._paths = (certificate, key, authorities)
        self._parties = parties
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._stamp = self._look()
        self._complaint = ""  # the last that was logged
        self._material = self._read(1)

    def current(self) -> Material:
        """What is to be used now. Three calls of stat, and some milliseconds after a change."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._material = self._read(self._material.generation + 1)
                    self._complaint = ""
                    log.info("certificate read anew", **describe(self._material))
            except (BadCertificate, OSError) as error:
                if str(error) != self._complaint:  # asked for every connection and more
                    self._complaint = str(error)
                    log.warning("certificate not read anew", reason=str(error))
            return self._material

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        """What differs when a file was replaced. Kubernetes replaces a link to all of them."""
        found = []
        for flag, path in zip(("--tls-cert", "--tls-key", "--tls-ca"), self._paths, strict=True):
            try:
                found.append(path.stat())
            except OSError as error:
                raise BadCertificate(f"{flag} {path}: {error.strerror}") from None
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)

    def _read(self, generation: int) -> Material:
        certificate, key, authorities = (path.read_bytes() for path in self._paths)
        names, expires = self._check()
        named = {name.party: name for name in sorted(names, key=str)}
        if not named or not named.keys() >= set(self._parties):
            has = ", ".join(map(str, named.values())) or "no role"
            needs = [party.value for party in self._parties] or ["ROLE"]
            uris = " and ".join(f"URI:spiffe://DOMAIN/baton/{need}/ID" for need in needs)
            raise BadCertificate(
                f"--tls-cert {self._paths[0]} names {has}; this process needs {uris}"
            )
        own = named[self._parties[0]] if self._parties else next(iter(named.values()))
        return Material(certificate, key, authorities, own, frozenset(named), expires, generation)

    def _check(self) -> tuple[frozenset[Name], str]:
        """A handshake of the certificate with itself, in memory: what would fail with a peer fails
        here, and says why. Returns its names and when it expires."""
        certificate, key, authorities = self._paths
        sides = [ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)]
        try:
            for side in sides:
                side.check_hostname = False
                side.verify_mode = ssl.CERT_REQUIRED
                side.load_cert_chain(certificate, key, password="")
                side.load_verify_locations(authorities)
            said = _shake_hands(*sides)
        except ssl.SSLCertVerificationError as error:
            raise BadCertificate(f"--tls-cert {certificate}: {error.verify_message}") from None
        except ssl.SSLError as error:
            files = f"--tls-cert {certificate}, --tls-key {key}, --tls-ca {authorities}"
            raise BadCertificate(f"{files}: {error.reason or error}") from None
        uris = [str(value) for kind, value in said["subjectAltName"] if kind == "URI"]
        return names_in(uris), str(said["notAfter"])


class _Said(TypedDict):
    """What we need of ``SSLObject.getpeercert``."""

    subjectAltName: Sequence[tuple[str, str]]
    notAfter: str


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> _Said:
    """What the client sees of the server's certificate, once both have accepted the other's.
    Raises SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    said = ends[0].getpeercert() or {}
    return cast(_Said, {"subjectAltName": (), "notAfter": "", **said})


def describe(material: Material) -> dict[str, str]:
    """For the log."""
    return {
        "party": material.name.party.value,
        "id": material.name.id,
        "domain": material.name.domain,
        "expires": material.expires,
    }
