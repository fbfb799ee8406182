"""gRPC channels and servers, all with the same options: keepalive both ways, large messages."""

from __future__ import annotations

import grpc

#: Prompts of 100k tokens and KV frames of a few MiB must pass; gRPC's own default is 4 MiB.
MAX_MESSAGE_BYTES = 64 * 2**20

#: Control messages are at most a prompt long; KV frames are cut to this size by the sender.
KV_FRAME_BYTES = 2**20

_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SIZES = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def connect(address: str, *, shared: bool = True) -> grpc.aio.Channel:
    """A channel to ``address`` (host:port). ``shared=False`` gives it a connection of its own,
    so that bulk data on it cannot hold up control messages on another."""
    options = [
        *_KEEPALIVE,
        *_SIZES,
        ("grpc.use_local_subchannel_pool", 0 if shared else 1),
        # A restarted worker is dialled again soon, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    return grpc.aio.insecure_channel(address, options=options)


def server() -> grpc.aio.Server:
    """A server that allows its peers' keepalive pings. Two servers never share a port."""
    return grpc.aio.server(
        options=[
            *_KEEPALIVE,
            *_SIZES,
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.so_reuseport", 0),
        ]
    )


def bind(target: grpc.aio.Server, host: str, port: int) -> int:
    """Listen on host:port (0 picks one) and return the port. Raises OSError when it is taken."""
    try:
        bound: int = target.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    if bound == 0:
        raise OSError(f"cannot listen on {host}:{port}")
    return bound
