"""Settings from the command line, the environment and a YAML file, or one line for each mistake."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsError,
    YamlConfigSettingsSource,
)

from baton.flags import source
from baton.settings import FleetSettings, ModelSettings, ProcessSettings, RelaySettings

S = TypeVar("S", bound=ProcessSettings)

#: Settings that are no more, and what says now what they did.
_REPLACED = {"local_prefill_share": "--itl-target-ms, milliseconds that a step may last"}


def load(cls: type[S], argv: Sequence[str], prog: str) -> S:
    """Settings from command line, environment and YAML file, in that order.

    Exits with status 2 and one line per mistake, naming the flag, when a value is not accepted.
    """
    _refuse_replaced(argv, prog)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", default=os.environ.get("BATON_CONFIG"))
    path = early.parse_known_args(argv)[0].config
    if path is not None:
        _require_mapping(path, prog)

    class Configured(cls):  # type: ignore[valid-type, misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, path)

    Configured.__doc__ = cls.__doc__
    try:
        return CliApp.run(
            Configured,
            cli_args=list(argv),
            cli_settings_source=source(Configured, prog, _required(cls)),
        )
    except ValidationError as error:
        for mistake in error.errors():
            sys.stderr.write(f"{prog}: {_explain(mistake, cls)}\n")
    except SettingsError as error:
        sys.stderr.write(f"{prog}: {error}\n")
    raise SystemExit(2)


def _refuse_replaced(argv: Sequence[str], prog: str) -> None:
    """Exit with one line where the command line or the environment has a setting that is no more;
    in a file it is one that is unknown."""
    given = {word.partition("=")[0] for word in argv} | os.environ.keys()
    for name in _REPLACED:
        for spelt in (_flag(name), f"BATON_{name.upper()}"):
            if spelt in given:
                sys.stderr.write(f"{prog}: {spelt}: {_replaced(name)}\n")
                raise SystemExit(2)


def _replaced(name: str) -> str:
    return f"there is no such setting any more; give {_REPLACED[name]}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require_mapping(path: str, prog: str) -> None:
    """Exit with one line unless the file is YAML and maps settings to values."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        sys.stderr.write(f"{prog}: --config {path}: {said}\n")
        raise SystemExit(2) from None
    if content is not None and not isinstance(content, dict):
        sys.stderr.write(f"{prog}: --config {path}: not a mapping of settings to values\n")
        raise SystemExit(2)


def _required(cls: type[ProcessSettings]) -> list[str]:
    """The options without which ``cls`` cannot be loaded, for the usage line."""
    needed = {
        ModelSettings: "--model DIR",
        RelaySettings: "--prefill HOST:PORT,...",
        FleetSettings: "--decode HOST:PORT,... | --membership SOURCE",
    }
    return [flag for base, flag in needed.items() if issubclass(cls, base)]


def _explain(mistake: ErrorDetails, cls: type[ProcessSettings]) -> str:
    """One line: the flag, what is wrong, and what was given, or is to be."""
    message = mistake["msg"].removeprefix("Value error, ")
    if not mistake["loc"]:
        return message
    # Of a list one element is wrong, which is what was given.
    name = ".".join(part for part in mistake["loc"] if isinstance(part, str))
    flag = _flag(name)
    if mistake["type"] == "extra_forbidden" and name in _REPLACED:
        return f"{flag}: {_replaced(name)}"
    if mistake["type"] == "extra_forbidden":
        return f"{flag}: this process has no such setting (docs/settings.md says which has)"
    if mistake["type"] == "missing":
        wanted = (cls.model_fields[name].description or "").removesuffix(" (required)")
        return f"{flag} is missing: give {flag} {wanted}, or set BATON_{name.upper()}"
    return f"{flag}: {message} (given: {mistake['input']!r})"
