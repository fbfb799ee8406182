"""Settings on the command line: a ``--help`` in sections, with units instead of Python types."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource

_EPILOG = (
    "Every option is also an environment variable (--num-blocks 64 is BATON_NUM_BLOCKS=64) and a "
    "key of the YAML file named by --config (num_blocks: 64). The command line wins over the "
    "environment, the environment over the file."
)

#: What stands for a value in --help where the field names nothing better.
_PLACEHOLDERS = {"int": "N", "float": "X", "str": "TEXT", "Path": "FILE"}

#: Defaults that say nothing; the description says what an unset option means.
_IDLE_DEFAULT = re.compile(r" ?\((default: (None|False)|default factory: .*|required)\)$")

#: A default that is a list, as Python writes it.
_LIST_DEFAULT = re.compile(r"\(default: \[(.*)\]\)$")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """In a field's ``Annotated``: what stands for its value in --help, such as ``SECONDS``."""

    text: str


class _Parser(argparse.ArgumentParser):
    """Names the option that was meant, where one looks like it."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        known = self._option_string_actions
        near = get_close_matches(unknown[1], known, cutoff=0.75) if unknown else []
        super().error(f"{message} (is {near[0]} meant?)" if near else message)


def source(cls: type[BaseSettings], prog: str, required: Sequence[str]) -> CliSettingsSource[Any]:
    """The command line of ``cls``.

    Options are grouped by the class that defines them, the most derived first, under its
    ``section``. ``required`` are flags with their values for the usage line.
    """
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *required, "[option ...]"]),
        description=(cls.__doc__ or "").replace("``", "`"),
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )
    groups = {
        base: parser.add_argument_group(base.__dict__.get("section", "more"))
        for base in cls.__mro__
        if issubclass(base, BaseSettings)
    }

    def add_argument(_: argparse.ArgumentParser, *names: str, **options: Any) -> None:
        field = options["dest"]
        home = next(base for base in groups if field in inspect.get_annotations(base))
        if options.get("metavar"):
            options["metavar"] = _placeholder(cls, field, options["metavar"])
        if options.get("help"):
            options["help"] = _LIST_DEFAULT.sub(_as_given, _IDLE_DEFAULT.sub("", options["help"]))
        groups[home].add_argument(*names, **options)

    return CliSettingsSource(
        cls, cli_prog_name=prog, root_parser=parser, add_argument_method=add_argument
    )


def _as_given(default: re.Match[str]) -> str:
    """A list as one writes it on the command line."""
    plain = default[1].replace("'", "").replace(", ", ",")
    return f"(default: {plain})"


def _placeholder(cls: type[BaseSettings], field: str, typename: str) -> str:
    for mark in cls.model_fields[field].metadata:
        if isinstance(mark, Placeholder):
            return mark.text
    return _PLACEHOLDERS.get(typename, typename)
