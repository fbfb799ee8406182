"""TLS for commands that call a process: the same settings, and the certificate of an admin."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from baton.settings import TlsSettings
from baton.tls.files import BadCertificate
from baton.tls.links import Links

_FIELDS = ("tls_cert", "tls_key", "tls_ca")


def add_options(parser: argparse.ArgumentParser) -> None:
    """--tls-cert, --tls-key and --tls-ca; the environment has them as well."""
    group = parser.add_argument_group(
        TlsSettings.section,
        "Also BATON_TLS_CERT and so on. The certificate must name the role admin.",
    )
    for field in _FIELDS:
        group.add_argument(f"--{field.replace('_', '-')}", metavar="FILE")


def links(options: argparse.Namespace) -> Links:
    """As ``options`` and the environment say. Raises BadCertificate, OSError."""
    given = {field: value for field in _FIELDS if (value := getattr(options, field)) is not None}
    try:
        return Links.of(TlsSettings(**given), quietly=True)
    except ValidationError as error:
        mistakes = (mistake["msg"].removeprefix("Value error, ") for mistake in error.errors())
        raise BadCertificate("; ".join(mistakes)) from None
