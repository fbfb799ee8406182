"""Certificates for trying things out: an authority in a directory, made by the program openssl."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.tls.names import DOMAIN, Party, name

#: Days that certificates are good for.
DAYS = 30
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class NoAuthority(Exception):
    """A certificate could not be made; says why."""


@dataclass(frozen=True, slots=True)
class Issued:
    """The three files that a process is started with."""

    certificate: Path
    key: Path
    authorities: Path

    @property
    def flags(self) -> list[str]:
        return [
            *("--tls-cert", str(self.certificate), "--tls-key", str(self.key)),
            *("--tls-ca", str(self.authorities)),
        ]


class Authority:
    """``ca.pem`` and ``ca.key`` in a directory, and the certificates made with them beside."""

    def __init__(self, directory: Path, domain: str = DOMAIN) -> None:
        """Made where there is none yet, for nobody else to read. Raises NoAuthority, OSError."""
        self._directory = directory
        self._domain = domain
        self._certificate, self._key = directory / "ca.pem", directory / "ca.key"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._certificate.exists():
            subject = ("-subj", f"/CN=Baton {domain}", "-days", str(DAYS))
            files = ("-keyout", str(self._key), "-out", str(self._certificate))
            _openssl("req", "-x509", *_NEW_KEY, *subject, *files)

    def issue(self, id: str, parties: Iterable[Party], days: int = DAYS) -> Issued:
        """ID.pem and ID.key, for one process with these roles; what was there is replaced.

        Raises NoAuthority, OSError, and ValueError for an id that no certificate can carry.
        """
        names = [name(self._domain, party, id) for party in parties]
        hosts = dict.fromkeys(host for each in names for host in each.hosts)
        alternatives = [*(f"URI:{each.uri}" for each in names), *(f"DNS:{host}" for host in hosts)]
        made = Issued(
            self._directory / f"{id}.pem", self._directory / f"{id}.key", self._certificate
        )
        new, key, request = (self._directory / f".{id}.{end}" for end in ("pem", "key", "csr"))
        extensions = (
            f"subjectAltName={','.join(alternatives)}",
            "basicConstraints=critical,CA:FALSE",
            "extendedKeyUsage=serverAuth,clientAuth",
        )
        asked = [part for extension in extensions for part in ("-addext", extension)]
        files = ("-keyout", str(key), "-out", str(request))
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={id}", *asked, *files)
        signing = ("-CA", str(self._certificate), "-CAkey", str(self._key), "-days", str(days))
        files = ("-in", str(request), "-out", str(new))
        _openssl("x509", "-req", *signing, "-copy_extensions", "copyall", *files)
        request.unlink()
        # Each whole at once: whoever uses them already may look at any time.
        os.replace(key, made.key)  # noqa: PTH105
        os.replace(new, made.certificate)  # noqa: PTH105
        return made


def _openssl(*arguments: str) -> None:
    """Raises NoAuthority with its last words."""
    command: Sequence[str] = ("openssl", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoAuthority(
            "certificates are made by the program openssl, which is not here"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NoAuthority(f"openssl {arguments[0]} (version 3 is needed): {said[-1:]}")
