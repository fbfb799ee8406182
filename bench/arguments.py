"""Types of options, for argparse. Each raises ArgumentTypeError for what is not allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """A whole number."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return number


def whole_numbers(text: str) -> list[int]:
    """``1,2``. Raises ValueError for what is none, which argparse tells as well."""
    return [int(part) for part in text.split(",")]


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Some of these names, as ``a,b``."""

    def names(text: str) -> list[str]:
        for name in (given := text.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return given

    return names
