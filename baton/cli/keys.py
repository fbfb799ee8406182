"""``baton keys new NAME``: a new API key, and the line that lets it in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from baton.keys import ApiKey, KeyLine


def main(argv: Sequence[str]) -> int:
    """Exit status 2, and a line for each mistake, where no gateway would take the line."""
    parser = argparse.ArgumentParser(prog="baton keys", description="API keys of a gateway.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new",
        help="make a key",
        description="Print a new API key, then the line for the file that --api-keys names. The "
        "key is shown this once; the line has only its hash.",
    )
    new.add_argument("name", metavar="NAME", help="whose it is; also in logs and metrics")
    new.add_argument("--concurrent", type=int, metavar="N", help="most requests at once")
    new.add_argument("--requests-per-minute", type=float, metavar="N")
    new.add_argument("--tokens-per-minute", type=float, metavar="N", help="of prompts")
    new.add_argument(
        "--best-priority", type=int, metavar="N", help="smallest priority that it may ask for"
    )
    asked = vars(parser.parse_args(argv))
    key = ApiKey.new()
    try:
        line = KeyLine(id=key.id, hash=key.hash, **asked)
    except ValidationError as error:
        for mistake in error.errors():
            what, given = str(mistake["loc"][0]).replace("_", "-"), mistake["input"]
            print(f"baton keys new: {what}: {mistake['msg']} (given: {given!r})", file=sys.stderr)
        return 2
    print("the key, shown only now, and its line for the --api-keys file:", file=sys.stderr)
    print(key.text)
    print(line.model_dump_json(exclude_none=True))
    return 0
