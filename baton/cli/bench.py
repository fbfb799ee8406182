"""``baton bench NAME``, ``baton simulate``, ``baton plan``: as ``python -m bench.NAME``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

#: What measures any endpoint; the others are of one's own machine, and `python -m` starts them.
_NAMES = {
    "serve": "load for an OpenAI endpoint, and what came of it",
    "report": "what a run of serve came to, from its raw file",
    "compare": "two of them side by side",
}


def main(argv: Sequence[str]) -> int:
    """Exit status 2 for a name that is none, 1 where the extra is not installed."""
    name = argv[0] if argv else ""
    if name not in _NAMES:
        named = "\n".join(f"  {known:<8} {summary}" for known, summary in _NAMES.items())
        text = f"usage: baton bench NAME [option ...]\n\nbenchmarks:\n{named}"
        asked = name in {"-h", "--help"}
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return _run(f"bench {name}", f"bench.{name}", argv[1:])


def simulate(argv: Sequence[str]) -> int:
    """Exit status 1 where the extra is not installed."""
    return _run("simulate", "bench.simulate.__main__", argv)


def plan(argv: Sequence[str]) -> int:
    """Likewise."""
    return _run("plan", "bench.plan.__main__", argv)


def _run(command: str, module: str, argv: Sequence[str]) -> int:
    try:
        entry: Callable[[Sequence[str]], int] = import_module(module).main
        return entry(argv)
    except ModuleNotFoundError as error:
        print(
            f"baton {command}: no module {error.name}; `pip install '.[bench]'`, in a clone of "
            "Baton, installs what it needs",
            file=sys.stderr,
        )
        return 1
