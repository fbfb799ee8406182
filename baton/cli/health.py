"""``baton health``: a probe for containers. It knows TLS; a kubelet's own for gRPC does not."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from baton.cli import probes, tls
from baton.cli.display import Phase
from baton.membership.source import split_address
from baton.tls.files import BadCertificate

#: Of a process that nobody can tell from one that is not there.
_NOT_YET = "does not answer, or is not ready yet"


def main(argv: Sequence[str]) -> int:
    """Exit status 0 when the process is ready (with --alive: when it answers), else 1."""
    parser = argparse.ArgumentParser(
        prog="baton health",
        description="Ask a process how it is: a worker by gRPC, a gateway by HTTP. Exit status 0 "
        "when it is ready to work.",
    )
    parser.add_argument(
        "process", metavar="HOST:PORT|URL", help="a worker's address, or http://HOST:PORT"
    )
    parser.add_argument(
        "--alive", action="store_true", help="that it answers will do: it may load or drain"
    )
    tls.add_options(parser, "any role, such as the process's own")
    options = parser.parse_args(argv)
    try:
        phase = asyncio.run(_ask(options))
    except (BadCertificate, ValueError, OSError) as error:
        print(f"baton health: {error}", file=sys.stderr)
        return 1
    said = _NOT_YET if phase is Phase.STARTING else phase.value
    print(f"{options.process}: {said}")
    well = {Phase.READY, Phase.LOADING} if options.alive else {Phase.READY}
    return 0 if phase in well else 1


async def _ask(options: argparse.Namespace) -> Phase:
    """Raises BadCertificate, OSError; ValueError for what is neither address nor URL."""
    process: str = options.process
    if process.startswith("http://"):
        return await probes.gateway(process.rstrip("/"), alive=options.alive)
    try:
        split_address(process)
    except ValueError as error:
        raise ValueError(f"{error}, nor http://HOST:PORT") from None
    return await probes.worker(tls.links(options), process)
