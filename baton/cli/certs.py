"""``baton certs``: certificates for trying TLS out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from baton.tls.authority import DAYS, Authority, NoAuthority
from baton.tls.names import DOMAIN, PARTIES, Party


def main(argv: Sequence[str]) -> int:
    """Exit status 1 when it could not be made, with one line that says why."""
    roles = sorted(party.value for party in PARTIES)
    parser = argparse.ArgumentParser(
        prog="baton certs",
        description="Make a certificate for one process, and an authority in DIR if there is none. "
        "For trying out: in a fleet that matters, use what issues your other certificates.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the files are")
    parser.add_argument(
        "--role",
        action="append",
        required=True,
        choices=roles,
        metavar="ROLE",
        help=f"one of {', '.join(roles)}; several times for a process that may change its role",
    )
    parser.add_argument("--id", required=True, help="name of the process, such as p0")
    parser.add_argument("--domain", default=DOMAIN, help="trust domain (default: %(default)s)")
    parser.add_argument(
        "--days", type=int, default=DAYS, help="days that it is good for (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        authority = Authority(options.directory, options.domain)
        issued = authority.issue(options.id, map(Party, options.role), options.days)
    except (NoAuthority, OSError, ValueError) as error:
        print(f"baton certs: {error}", file=sys.stderr)
        return 1
    print(" ".join(issued.flags))
    return 0
