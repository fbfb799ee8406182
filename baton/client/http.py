"""Connections as the client wants them, and HTTP's ways to fail as errors of the table."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import TypeAlias

import httpx

from baton.errors import BatonError, CapacityError, GatewayLost, InvalidRequest, from_openai

#: Seconds to reach a gateway, and to hand it a request.
_CONNECT = 5.0
_WRITE = 30.0
#: Seconds without a byte after which a gateway is taken for lost. It sends nothing until the first
#: token, for which it has a deadline of its own, and a comment every 15 s from then on.
SILENCE = 200.0
#: A host that is gone says nothing. Seconds until the kernel asks, between questions; how often.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

SocketOption: TypeAlias = tuple[int, int, int]

#: Any number of streams at once: the gateway bounds them.
LIMITS = httpx.Limits(max_connections=None)


def authorization(api_key: str | None) -> Mapping[str, str]:
    """The header of every request."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def socket_options() -> list[SocketOption]:
    """A peer that vanished is noticed within half a minute, where the system can be told so."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    return options + [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE.items()
        if hasattr(socket, name)
    ]


def timeout(left: float, silence: float) -> httpx.Timeout:
    """With ``left`` seconds for all that is still to come."""
    return httpx.Timeout(
        connect=min(_CONNECT, left), read=min(silence, left), write=min(_WRITE, left), pool=None
    )


def lost(gateway: str, error: httpx.TransportError) -> GatewayLost:
    """The connection failed, or what came is no HTTP."""
    made = GatewayLost(f"{gateway}: {str(error) or type(error).__name__}")
    made.__cause__ = error
    return made


def names(gateway: str, response: httpx.Response) -> list[str]:
    """Of the models in an answer to /v1/models. Raises BatonError if it is none."""
    if response.status_code != 200:
        raise refused(gateway, response)
    return [model["id"] for model in response.json()["data"]]


def refused(gateway: str, response: httpx.Response) -> BatonError:
    """Why there is no answer. The response has been read, and its status is not 200."""
    try:
        error = from_openai(json.loads(response.content))
    except ValueError:  # by something between us and the gateway
        error = _unknown(gateway, response)
    after = response.headers.get("retry-after", "")
    if isinstance(error, CapacityError) and after.isascii() and after.isdigit():
        error.retry_after = float(after)
    return error


def _unknown(gateway: str, response: httpx.Response) -> BatonError:
    said = f"{gateway} answered {response.status_code}: {response.text[:200]!r}"
    if response.status_code in (429, 503):
        return CapacityError(said)
    return GatewayLost(said) if response.status_code >= 500 else InvalidRequest(said)
