"""Who a certificate says its holder is, and where it says so.

    URI:spiffe://DOMAIN/baton/ROLE/ID    read by servers: one for each role of the holder
    DNS:ROLE.DOMAIN                      checked by clients: likewise
    DNS:worker.DOMAIN                    of prefill and decode workers, for those who do not know
                                         yet which of the two they dial

Twice, as gRPC shows a server its client's certificate, but a client nothing of its server's: all
that a client can do is to name, before the handshake, a host that the certificate must be for.
The form of the URI is SPIFFE's; DOMAIN is the trust domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

#: The trust domain of certificates that ``baton certs`` makes.
DOMAIN = "baton.internal"

_URI = re.compile(r"spiffe://([a-z0-9._-]+)/baton/([a-z]+)/([A-Za-z0-9._-]+)")


class Party(Enum):
    """A role in the fleet, as certificates name it."""

    PREFILL = "prefill"
    DECODE = "decode"
    GATEWAY = "gateway"
    RELAY = "relay"
    ADMIN = "admin"  #: commands, and whoever runs them
    WORKER = "worker"  #: prefill or decode; only ever dialled, and in no URI

    def host(self, domain: str) -> str:
        """The DNS name by which it is dialled."""
        return f"{self.value}.{domain}"


WORKERS = frozenset({Party.PREFILL, Party.DECODE})
#: Those that a certificate may name.
PARTIES = frozenset(Party) - {Party.WORKER}


@dataclass(frozen=True, slots=True)
class Name:
    """One role of a certificate's holder."""

    domain: str
    party: Party
    id: str  #: of the holder, such as "p0"

    def __str__(self) -> str:
        return f"{self.party.value} {self.id!r}"

    @property
    def uri(self) -> str:
        return f"spiffe://{self.domain}/baton/{self.party.value}/{self.id}"

    @property
    def hosts(self) -> list[str]:
        """Every DNS name that its holder is dialled by."""
        parties = [self.party, Party.WORKER] if self.party in WORKERS else [self.party]
        return [party.host(self.domain) for party in parties]


def names_in(uris: Iterable[str]) -> frozenset[Name]:
    """The names among a certificate's URIs; any other URI is left out."""
    known = {party.value: party for party in PARTIES}
    found = (_URI.fullmatch(uri) for uri in uris)
    return frozenset(
        Name(match[1], known[match[2]], match[3]) for match in found if match and match[2] in known
    )


def name(domain: str, party: Party, id: str) -> Name:
    """Raises ValueError for a domain or an id that no certificate could carry."""
    made = Name(domain, party, id)
    if made not in names_in([made.uri]):
        raise ValueError(
            f"{made.uri}: the domain is of a-z 0-9 . _ -, the id of A-Z a-z 0-9 . _ - and not empty"
        )
    return made
