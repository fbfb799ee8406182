"""What may or may not be installed beside torch."""

from __future__ import annotations

import importlib.util


def installed(module: str) -> bool:
    """Whether a module can be found; packages that it is in are imported, itself it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # one of those packages
        return False
