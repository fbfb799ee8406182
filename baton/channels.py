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


def _window(nbytes: int | None) -> list[tuple[str, int]]:
    """Let the peer send so many bytes ahead per stream, a message under way not counted.

    Left alone, gRPC follows its own estimate of bandwidth times delay; on a busy machine that was
    seen to be more than 64 MiB for each of 64 streams that nobody read.
    """
    if nbytes is None:
        return []
    return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", nbytes)]


def connect(address: str, *, shared: bool = True, window: int | None = None) -> grpc.aio.Channel:
    """A channel to ``address`` (host:port). ``shared=False`` gives it a connection of its own,
    so that bulk data on it cannot hold up control messages on another. ``window``: bytes that
    may arrive on a stream before they are read; gRPC's choice if None."""
    options = [
        *_KEEPALIVE,
        *_SIZES,
        *_window(window),
        ("grpc.use_local_subchannel_pool", 0 if shared else 1),
        # A restarted worker is dialled again soon, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    return grpc.aio.insecure_channel(address, options=options)


def server(*, window: int | None = None) -> grpc.aio.Server:
    """A server that allows its peers' keepalive pings. Two servers never share a port.
    ``window`` as in ``connect``."""
    return grpc.aio.server(
        options=[
            *_KEEPALIVE,
            *_SIZES,
            *_window(window),
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
