"""What Baton's processes share and what people import. Knows no torch.

``from baton import Client, AsyncClient`` imports HTTP only then: workers have no use for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from baton.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from baton import client

    found: object = getattr(client, name)
    return found
