"""``python -m prefill_worker``: one prefill worker, until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

from baton.configure import load
from baton.settings import PrefillSettings
from model.worker.process import run
from prefill_worker.role import prefill_role


def main() -> int:
    settings = load(PrefillSettings, sys.argv[1:], "prefill_worker")
    return run("prefill_worker", settings, prefill_role())


if __name__ == "__main__":
    sys.exit(main())
