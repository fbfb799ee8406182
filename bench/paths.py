"""The ways that bytes can take from one process to the other, by name."""

from __future__ import annotations

from bench import handoff, limits
from bench.job import OpenReceiver, OpenSender

TRANSPORTS = ("grpc", "shm")
LIMITS = ("bare grpc", "tcp", "memcpy")

SENDERS: dict[str, OpenSender] = {
    "grpc": handoff.grpc_sender,
    "shm": handoff.shm_sender,
    "bare grpc": limits.bare_grpc_sender,
    "tcp": limits.tcp_sender,
    "memcpy": limits.memcpy_sender,
}
RECEIVERS: dict[str, OpenReceiver] = {
    "grpc": handoff.grpc_receiver,
    "shm": handoff.shm_receiver,
    "bare grpc": limits.bare_grpc_receiver,
    "tcp": limits.tcp_receiver,
    "memcpy": limits.memcpy_receiver,
}
