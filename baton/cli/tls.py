"""TLS for commands that call a process: the same settings, and the certificate of an admin."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from baton.settings import TlsSettings
from baton.tls.files import BadCertificate, Files
from baton.tls.links import Links
from baton.tls.names import Party

_FIELDS = ("tls_cert", "tls_key", "tls_ca")


def add_options(parser: argparse.ArgumentParser, role: str = "the role admin") -> None:
    """--tls-cert, --tls-key and --tls-ca; the environment has them as well. ``role``: what the
    certificate must name."""
    group = parser.add_argument_group(
        TlsSettings.section, f"Also BATON_TLS_CERT and so on. The certificate must name {role}."
    )
    for field in _FIELDS:
        group.add_argument(f"--{field.replace('_', '-')}", metavar="FILE")


def links(options: argparse.Namespace, *parties: Party) -> Links:
    """As ``options`` and the environment say, with a certificate that names ``parties``; without
    any, one role of whatever kind. Raises BadCertificate, OSError."""
    given = {field: value for field in _FIELDS if (value := getattr(options, field)) is not None}
    try:
        files = TlsSettings(**given).tls_files
    except ValidationError as error:
        mistakes = (mistake["msg"].removeprefix("Value error, ") for mistake in error.errors())
        raise BadCertificate("; ".join(mistakes)) from None
    return Links() if files is None else Links(Files(*files, *parties))
