"""The ways that bytes can take from one process to the other, by name."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from bench import bare_nixl, encrypted, handoff, limits
from bench.job import OpenReceiver, OpenSender

_NIXL = ("nixl", "bare nixl", "nixl blocks")

#: Paths that cannot be measured here, and why.
MISSING = {} if find_spec("nixl") else dict.fromkeys(_NIXL, "NIXL is not installed")
if shutil.which("openssl") is None:
    MISSING["grpc tls"] = "there is no program openssl to make certificates"


def _here(*paths: str) -> tuple[str, ...]:
    return tuple(path for path in paths if path not in MISSING)


TRANSPORTS = _here("grpc", "shm", "nixl")
LIMITS = _here("grpc tls", "bare grpc", "tcp", "memcpy", "bare nixl", "nixl blocks")

SENDERS: dict[str, OpenSender] = {
    "grpc": handoff.grpc_sender,
    "shm": handoff.shm_sender,
    "nixl": handoff.nixl_sender,
    "grpc tls": encrypted.grpc_tls_sender,
    "bare grpc": limits.bare_grpc_sender,
    "tcp": limits.tcp_sender,
    "memcpy": limits.memcpy_sender,
    "bare nixl": bare_nixl.bare_nixl_sender,
    "nixl blocks": bare_nixl.bare_nixl_sender,
}
RECEIVERS: dict[str, OpenReceiver] = {
    "grpc": handoff.grpc_receiver,
    "shm": handoff.shm_receiver,
    "nixl": handoff.nixl_receiver,
    "grpc tls": encrypted.grpc_tls_receiver,
    "bare grpc": limits.bare_grpc_receiver,
    "tcp": limits.tcp_receiver,
    "memcpy": limits.memcpy_receiver,
    "bare nixl": bare_nixl.bare_nixl_receiver,
    "nixl blocks": bare_nixl.nixl_blocks_receiver,
}
