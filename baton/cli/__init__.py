"""The ``baton`` command. It starts other packages as ``python -m ...`` and imports none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: imported only when it is asked for, so that ``--help`` is quick."""

    module: str
    summary: str
    function: str = "main"

    def run(self, argv: Sequence[str]) -> int:
        entry: Callable[[Sequence[str]], int] = getattr(import_module(self.module), self.function)
        return entry(argv)


COMMANDS = {
    "up": Command("baton.cli.up", "start a gateway and its workers on this machine"),
    "top": Command("baton.cli.top", "watch a fleet on the terminal, and steer it"),
    "chat": Command("baton.cli.talk", "talk to a model", "chat"),
    "generate": Command("baton.cli.talk", "print how a text goes on", "generate"),
    "workers": Command("baton.cli.workers", "list a gateway's workers, and how they are"),
    "health": Command("baton.cli.health", "ask a process how it is, as a probe does"),
    "certs": Command("baton.cli.certs", "make a certificate for trying TLS out"),
    "role": Command("baton.cli.workers", "have a worker prefill, decode or do both", "role"),
    "drain": Command("baton.cli.workers", "have a worker hand back its work and leave", "drain"),
    "keys": Command("baton.cli.keys", "make API keys for a gateway"),
    "bench": Command("baton.cli.bench", "put load on an endpoint, and measure it"),
    "simulate": Command("baton.cli.bench", "try a fleet out in virtual time", "simulate"),
    "plan": Command("baton.cli.bench", "say how many workers of which kind to have", "plan"),
}


def _usage() -> str:
    lines = [f"  {name:<8} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: baton COMMAND [option ...]",
            "",
            "Disaggregated prefill/decode serving for large language models.",
            "",
            "commands:",
            *lines,
            "",
            "`baton COMMAND --help` lists a command's options; `baton --version` names this build.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``baton`` script; the exit code of the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"baton {metadata.version('baton-serve')}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"baton: no command {arguments[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    return command.run(arguments[1:])
