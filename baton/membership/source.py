"""How settings name where workers are found, and where they register."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["static", "embedded", "dns", "etcd", "gateway"]

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:,\[\]]+):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Source:
    """``dns:a:7000,b:7000`` taken apart."""

    kind: Kind
    addresses: tuple[str, ...] = ()  #: host:port each

    @classmethod
    def parse(cls, text: str) -> Source:
        """``static``, ``embedded``, or ``dns:``, ``etcd:`` or ``gateway:`` and HOST:PORT,...

        Raises ValueError naming what is wrong.
        """
        kind, colon, rest = text.partition(":")
        if kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(f"{kind!r} is no membership; there are {known}")
        if kind in ("static", "embedded"):
            if colon:
                raise ValueError(f"{kind} takes no address (given: {rest!r})")
            return cls(kind)  # type: ignore[arg-type]  # checked above
        return cls(kind, addresses(rest, f"{kind}:"))  # type: ignore[arg-type]

    @classmethod
    def parse_posts(cls, text: str) -> Source:
        """Where a worker registers: gateways' HOST:PORT,... or ``etcd:`` and HOST:PORT,...

        Raises ValueError naming what is wrong.
        """
        if text.startswith("etcd:"):
            return cls("etcd", addresses(text.removeprefix("etcd:"), "etcd:"))
        return cls("gateway", addresses(text, ""))


def addresses(text: str, after: str) -> tuple[str, ...]:
    """HOST:PORT,... taken apart. Raises ValueError naming the one that is none; ``after`` is what
    stood before them."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise ValueError(f"{after}HOST:PORT,... names no address")
    for part in parts:
        split_address(part)
    return parts


def split_address(address: str) -> tuple[str, int]:
    """Host (an IPv6 one without its brackets) and port. Raises ValueError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return match[1].strip("[]"), int(match[2])


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
