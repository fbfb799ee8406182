"""A peer's connection can be closed by the name that gRPC gives it, and no other is."""

from __future__ import annotations

import socket

import pytest

from baton.sockets import disconnect


@pytest.mark.parametrize(
    ("family", "host", "written"),
    [
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv4:127.0.0.1"),  # gRPC listens on both at once
    ],
)
def test_only_that_connection_is_closed(family: int, host: str, written: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        peers = [socket.create_connection(listener.getsockname()[:2]) for _ in range(2)]
        ends = [listener.accept()[0] for _ in peers]
        port = peers[0].getsockname()[1]
        assert disconnect(f"{written}:{port}")
        assert peers[0].recv(1) == b"", "the peer reads the end"
        ends[1].send(b"x")
        assert peers[1].recv(1) == b"x"
        for each in (*peers, *ends):
            each.close()
        assert not disconnect(f"{written}:{port}"), "it is gone"


def test_what_has_no_port_is_left_alone() -> None:
    assert not disconnect("unix:/tmp/socket")
