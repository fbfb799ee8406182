"""gRPC channels and servers, all with the same options: keepalive both ways, large messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def called(host: str) -> tuple[str, str]:
    """The option by which a server's certificate must be for ``host``, wherever it was dialled."""
    return ("grpc.ssl_target_name_override", host)


def connect(
    address: str,
    *,
    shared: bool = True,
    window: int | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    host: str = "",
) -> grpc.aio.Channel:
    """A channel to ``address`` (host:port). ``shared=False`` gives it a connection of its own,
    so that bulk data on it cannot hold up control messages on another. ``window``: bytes that
    may arrive on a stream before they are read; gRPC's choice if None. With ``credentials`` the
    server's certificate must be for ``host``."""
    options = [
        *_KEEPALIVE,
        *_SIZES,
        *_window(window),
        ("grpc.use_local_subchannel_pool", 0 if shared else 1),
        # A restarted worker is dialled again soon, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=[*options, called(host)])


def server(
    *, window: int | None = None, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()
) -> grpc.aio.Server:
    """A server that allows its peers' keepalive pings. Two servers never share a port.
    ``window`` as in ``connect``."""
    return grpc.aio.server(
        interceptors=interceptors,
        options=[
            *_KEEPALIVE,
            *_SIZES,
            *_window(window),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.so_reuseport", 0),
        ],
    )


def bind(
    target: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Listen on host:port (0 picks one) and return the port. Raises OSError when it is taken."""
    address = f"{host}:{port}"
    try:
        bound: int = (
            target.add_insecure_port(address)
            if credentials is None
            else target.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        # gRPC keeps the reason for its own log.
        why = "it is in use, or no address of this machine"
        raise OSError(f"cannot listen on {host}:{port}: {why}") from error
    if bound == 0:
        raise OSError(f"cannot listen on {host}:{port}")
    return bound
