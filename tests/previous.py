"""A worker as the protocol version before this one spoke, until it is started again.

    python -m tests.previous MARKER MODULE ARGUMENTS...

runs MODULE. Where the file MARKER is not there yet it makes it, and the worker says PROTOCOL - 1
and neither knows nor sends what the .proto files call "since protocol" PROTOCOL. So a fleet of
these is upgraded by restarting its workers.
"""

from __future__ import annotations

import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

from baton.generation import AttemptKey, TokenLogprobs
from baton.identity import PROTOCOL, Identity
from baton.v1 import common_pb2
from decode_worker.outbox import Outbox
from model.worker import runtime
from model.worker.requests import from_wire
from prefill_worker import call


def become_the_one_before() -> None:
    """To be changed with PROTOCOL: what has come since is taken away here."""
    assert PROTOCOL == 2, "this knows what protocol 2 brought"
    runtime.Identity = partial(Identity, protocol=PROTOCOL - 1)  # type: ignore[assignment, misc]

    def without_more_choices(message: common_pb2.Generation, max_model_len: int) -> Any:
        message.ClearField("more_choices")
        return from_wire(message, max_model_len)

    call.from_wire = without_more_choices
    token = Outbox.token

    def without_cached_tokens(
        self: Outbox,
        key: AttemptKey,
        index: int,
        token_id: int,
        cached_tokens: int | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> None:
        token(self, key, index, token_id, logprobs=logprobs)

    Outbox.token = without_cached_tokens  # type: ignore[method-assign]
    Outbox.progress = lambda self, progress: None  # type: ignore[method-assign]


def main() -> None:
    marker, module, *arguments = sys.argv[1:]
    if not Path(marker).exists():
        Path(marker).touch()
        become_the_one_before()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
