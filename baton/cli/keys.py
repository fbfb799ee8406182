"""``baton keys new NAME``: a new API key, and the line that lets it in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from baton.keys import ApiKey


def main(argv: Sequence[str]) -> int:
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
    line = {"name": asked.pop("name"), "id": key.id, "hash": key.hash}
    print("the key, shown only now, and its line for the --api-keys file:", file=sys.stderr)
    print(key.text)
    print(json.dumps(line | {name: limit for name, limit in asked.items() if limit is not None}))
    return 0
