"""``python -m decode_worker``: one decode worker, until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

from baton.configure import load
from baton.settings import DecodeSettings
from decode_worker.role import decode_role
from model.worker.process import run


def main() -> int:
    settings = load(DecodeSettings, sys.argv[1:], "decode_worker")
    return run("decode_worker", settings, decode_role(settings))


if __name__ == "__main__":
    sys.exit(main())
