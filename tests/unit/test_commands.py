"""Commands in documents and in the Makefile are accepted: modules, options and their values."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from baton import cli
from baton.configure import load
from baton.settings.table import PROCESSES
from tests.telemetry import ROOT

#: Who reads settings; all others have argparse alone.
_SETTINGS = {
    "baton up": "up",
    "gateway": "gateway",
    "gateway.relay": "relay",
    "prefill_worker": "prefill",
    "decode_worker": "decode",
}

#: What stands for a value in a document, and one.
_VALUES = {"HOST:PORT": "h:7001", "WORKER": "h:7001", "N": "1", "NAME": "overload"}

_OURS = "baton|bench|decode_worker|gateway|model|prefill_worker|tests"
_COMMAND = re.compile(
    rf"\b(?:python -m +((?:{_OURS})\b[\w.]*)|((?<!from )(?<!-n )baton +[a-z]+))(?=\s|$)(.*)"
)
_BLOCK = re.compile(r"^(?:    |\t)(.*)$", re.M)
#: What repeats a figure, in the last column of a table.
_REPEATS = re.compile(r"\| `(python -m bench[^`]+)` \|$", re.M)


class Parsed(Exception):
    """The options of a command were accepted."""


@dataclass(frozen=True, slots=True, order=True)
class Command:
    name: str
    argv: tuple[str, ...]
    whole: bool  #: else it is only named, or something of it is left out

    def __str__(self) -> str:
        return " ".join((self.name, *self.argv))


def _texts() -> Iterator[str]:
    """Documents that say what is, and the Makefile with its variables put in."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "model/demo/README.md"]
    for path in [*found, ROOT / "bench/results/README.md"]:
        if path.name not in {"LOG.md", "CHANGELOG.md"}:
            yield path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(\w+) \?= ?(.*)$", makefile, re.M))
    yield re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], ""), makefile)


def commands() -> Iterator[Command]:
    for text in _texts():
        text = re.sub(r"\\\n\s*", " ", text)
        whole = [*_BLOCK.findall(text), *_REPEATS.findall(text)]
        for line in [*whole, *re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]:
            for module, command, rest in _COMMAND.findall(" ".join(line.split())):
                argv = tuple(_words(rest))
                yield Command(module or command, argv, line in whole and "..." not in rest)


def _words(rest: str) -> Iterator[str]:
    """Up to a comment, a pipe, a redirection; without what says that more may stand there."""
    before = ""
    for word in shlex.split(rest, comments=True):
        if re.match(r"[|&;>(]", word):
            return
        if word != "-h" and (word != "..." or before.startswith("--")):
            yield _VALUES.get(word, word)
        before = word


@pytest.mark.parametrize("command", sorted({*commands()}), ids=str)
def test_a_command_is_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _SETTINGS.get(command.name)
    if settings is not None and command.whole:
        load(PROCESSES[settings], command.argv, command.name)
        return
    if not command.argv and not command.whole:
        program, _, name = command.name.partition(" ")
        assert name in cli.COMMANDS if program == "baton" else find_spec(program)
        return
    _stop_behind_the_options(monkeypatch, lenient=not command.whole)
    with pytest.raises(Parsed):
        if settings is not None:
            load(PROCESSES[settings], command.argv, command.name)
        elif command.name.startswith("baton "):
            cli.main([command.name.removeprefix("baton "), *command.argv])
        else:
            monkeypatch.setattr(sys, "argv", [command.name, *command.argv])
            for module in (command.name, f"{command.name}.__main__"):  # another test's
                monkeypatch.delitem(sys.modules, module, raising=False)
            runpy.run_module(command.name, run_name="__main__")


def _stop_behind_the_options(monkeypatch: pytest.MonkeyPatch, *, lenient: bool) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        if lenient:
            _demand_nothing(parser)
        parse(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr("baton.log.configure", lambda *_: None)  # of some it is the first thing


def _demand_nothing(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _demand_nothing(inner)


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    code = re.compile(r"(?:`|^    )make ([a-z-]+)", re.M)
    named = {name for text in _texts() for name in code.findall(text)}
    assert "demo" in named
    assert named <= targets
